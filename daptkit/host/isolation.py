"""Guards around foreign code: a time limit, and any failure turned into one line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from daptkit.errors import UsageError

TIMEOUT_VARIABLE = "DAPTKIT_PLUGIN_TIMEOUT"
DEFAULT_TIMEOUT = 10.0
_LONGEST_MESSAGE = 300
_one_at_a_time = threading.RLock()


class PluginFault(Exception):
    """Why a plugin cannot be used, in one line that does not yet name the plugin."""


class _OutOfTime(BaseException):
    """Raised by the alarm; no ``except Exception`` of a plugin can swallow it."""


def plugin_timeout() -> float:
    """Return the seconds that a plugin's import may take.

    Raises:
        UsageError: ``DAPTKIT_PLUGIN_TIMEOUT`` is not a positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"{TIMEOUT_VARIABLE} takes a positive number of seconds, not {text!r}.")
    return seconds


def timeout_reason(seconds: float) -> str:
    """Return the line for a plugin that was stopped after ``seconds``."""
    return f"its import took more than {seconds:g} s ({TIMEOUT_VARIABLE} sets the limit)"


def describe(error: BaseException) -> str:
    """Return type and message of an exception as one line of bounded length."""
    message = " ".join(str(error).split())
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + "..."
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def warn(text: str) -> None:
    """Write one line for the user to stderr."""
    print(f"daptkit: {text}", file=sys.stderr)


@contextlib.contextmanager
def guarded(action: str, timeout: float | None) -> Iterator[None]:
    """Run foreign code: its prints go to stderr, its failure becomes a :class:`PluginFault`.

    Args:
        action: what is done, for the message, such as ``"importing my_plugin"``.
        timeout: seconds it may take, or ``None`` for no limit.

    Raises:
        PluginFault: the code raised, called ``sys.exit`` or ran out of time.
    """
    try:
        # Two threads that redirect at once would leave stdout redirected for good.
        with _one_at_a_time, time_limit(timeout), contextlib.redirect_stdout(sys.stderr):
            yield
    except PluginFault:
        raise
    except _OutOfTime:
        raise PluginFault(timeout_reason(timeout or 0.0)) from None
    except (Exception, SystemExit) as error:  # isolation boundary: a plugin may raise anything
        raise PluginFault(f"{action} raised {describe(error)}") from error


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupt the body after ``seconds``.

    The limit needs an alarm signal, which only the main thread of a POSIX process has; elsewhere
    the body runs without one. An alarm that was already set is restored with its remaining time.
    """
    usable = hasattr(signal, "SIGALRM") and threading.current_thread() is threading.main_thread()
    if seconds is None or not usable:
        yield
        return

    def ring(signum: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    started = time.monotonic()
    previous_handler = signal.signal(signal.SIGALRM, ring)
    previous_delay, previous_interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
        if previous_delay:
            left = max(previous_delay - (time.monotonic() - started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, previous_interval)
