"""Trying imports in child processes, so that a crash or a hang costs its own line only."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_CODE = (
    "import sys; sys.path[:] = {path!r}; "
    "from daptkit.doctor.probe import main; main({answers}, {items!r})"
)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How importing a module, or calling a function, went.

    Args:
        reason: why it failed, in one line; empty where it went well.
        absent: whether the module is not there at all.
        tried: whether it was tried: not where something that it needs had failed.
        version: what the module says of itself; empty where it says nothing.
        details: what the function returned.
    """

    reason: str = ""
    absent: bool = False
    tried: bool = True
    version: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        """Whether it was tried and worked."""
        return self.tried and not self.reason


def attempt(
    items: Sequence[str], *, needs: Mapping[str, Sequence[str]], limit: float
) -> dict[str, Attempt]:
    """Try items in order, all in one child while they go well.

    Args:
        items: ``"module"`` or ``"module:function"``, each after what it needs.
        needs: item to the items without which it is not tried.
        limit: seconds that one child may take.

    Returns:
        One result for each item.
    """
    found: dict[str, Attempt] = {}
    while left := [item for item in items if item not in found]:
        blocked = [
            i for i in left if any(n in found and not found[n].well for n in needs.get(i, ()))
        ]
        if blocked:
            found.update(dict.fromkeys(blocked, Attempt(tried=False)))
            continue
        rows, ending = _run_child(left, limit)
        for item, row in zip(left, rows, strict=False):
            found[item] = Attempt(**row)
        if ending:
            found[left[len(rows)]] = Attempt(reason=ending)
    return found


def _run_child(items: Sequence[str], limit: float) -> tuple[list[dict[str, Any]], str]:
    """Return the child's answers and, where it did not come to an end by itself, why."""
    # A file and not a pipe: what the child starts may hold a pipe open after it was ended.
    with tempfile.TemporaryFile() as answers:
        number = answers.fileno()
        # The child sees the same modules as this process, however its path was put together.
        code = _CODE.format(path=sys.path, answers=number, items=list(items))
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(number,),
        )
        try:
            ending = _ending(process.wait(limit))
        except subprocess.TimeoutExpired:
            ending = f"it took more than {limit:g} s"
        finally:
            process.kill()
            process.wait()
        answers.seek(0)
        rows = [json.loads(line) for line in answers.read().splitlines()]
    finished = len(rows) == len(items) or bool(rows and rows[-1]["reason"])
    return rows, "" if finished else ending or "it ended the process"


def _ending(code: int) -> str:
    if code == 0:
        return ""
    how = f"exit status {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    return f"it ended the process ({how})"
