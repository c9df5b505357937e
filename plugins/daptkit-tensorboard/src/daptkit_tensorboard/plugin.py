"""The listener as daptkit sees it; imports nothing heavy until a run is to be logged."""

from __future__ import annotations

import os

from daptkit.errors import UsageError
from daptkit.plugin import Event, hookimpl

SWITCH = "DAPTKIT_TENSORBOARD"
"""Environment variable that switches logging on."""


def switched_on() -> bool:
    """Return whether runs are to be logged.

    Raises:
        UsageError: the variable is neither 1 nor 0.
    """
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise UsageError(f"{SWITCH} takes 1 or 0, not {value!r}")
    return value == "1"


@hookimpl
def daptkit_event(event: Event) -> None:
    """Log an event of a run, where logging is switched on."""
    if switched_on():
        from daptkit_tensorboard.logger import log

        log(event)
