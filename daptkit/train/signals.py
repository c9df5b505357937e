"""Asking a training loop to stop at the next step instead of in the middle of one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from daptkit.errors import Terminated


class StopRequest:
    """Holds the signal that asked to stop, or ``None``."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM and the first Ctrl-C into a request that the loop reads after each step.

    A second Ctrl-C interrupts at once. Outside the main thread signals cannot be caught and
    nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and request.signal is not None:
            raise KeyboardInterrupt
        request.signal = number

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def obey(number: int | None) -> None:
    """Stop as a signal asks, now that a checkpoint was written.

    Args:
        number: the signal, or ``None`` to go on.

    Raises:
        Terminated: it was SIGTERM.
        KeyboardInterrupt: it was another one.
    """
    if number == signal.SIGTERM:
        raise Terminated("terminated; a checkpoint was written. Continue with --resume.")
    if number is not None:
        raise KeyboardInterrupt
