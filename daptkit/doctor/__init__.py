"""What is installed, what is wrong with it and what to do about it; imports nothing heavy itself.

Whatever may hang or crash (torch, its companions, plugins) is imported in child processes with a
time limit, so that it becomes a finding.
"""

from daptkit.doctor.check import Check, can_run
from daptkit.doctor.examination import IMPORT_LIMIT, examine

__all__ = ["IMPORT_LIMIT", "Check", "can_run", "examine"]
