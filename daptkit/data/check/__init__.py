"""What ``daptkit data check`` looks at: every image, their duplicates, classes and patients."""

from daptkit.data.check.duplicates import Duplicate, find_duplicates
from daptkit.data.check.joint import joint_problems
from daptkit.data.check.look import NEAR
from daptkit.data.check.problems import ERROR, WARNING, Problem, domain_problems
from daptkit.data.check.roles import ROLES, choose_role, has_labels
from daptkit.data.check.scan import Scan, scan_table
from daptkit.data.check.summary import summarise
from daptkit.data.check.write import manifest_path, require_files, write_manifest

__all__ = [
    "Duplicate",
    "ERROR",
    "NEAR",
    "Problem",
    "ROLES",
    "Scan",
    "WARNING",
    "choose_role",
    "domain_problems",
    "find_duplicates",
    "has_labels",
    "joint_problems",
    "manifest_path",
    "require_files",
    "scan_table",
    "summarise",
    "write_manifest",
]
