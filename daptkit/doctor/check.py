"""One finding, and what a set of them means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OK, WARNING, ERROR = "ok", "warning", "error"


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was looked at, what was found, and the cure where something is wrong.

    Args:
        name: what was looked at, such as ``"torchvision"``.
        status: ``"ok"``, ``"warning"`` (a run can work) or ``"error"`` (none can).
        finding: one line.
        cure: what to do, one line; empty where all is well.
    """

    name: str
    status: str
    finding: str
    cure: str = ""


def fine(name: str, finding: str) -> Check:
    """Return a finding that needs no cure."""
    return Check(name=name, status=OK, finding=finding)


def warning(name: str, finding: str, cure: str) -> Check:
    """Return a finding with which runs can still work."""
    return Check(name=name, status=WARNING, finding=finding, cure=cure)


def error(name: str, finding: str, cure: str) -> Check:
    """Return a finding with which no run can work as it stands."""
    return Check(name=name, status=ERROR, finding=finding, cure=cure)


def can_run(checks: Iterable[Check]) -> bool:
    """Return whether ``daptkit adapt`` could work: nothing found is an error."""
    return all(check.status != ERROR for check in checks)
