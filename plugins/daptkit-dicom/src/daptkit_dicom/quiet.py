"""Silence while a file is read: warnings and log lines of pydicom quote values of tags.

Only the thread that reads is silent, so that other users of pydicom in the process keep their
messages. ``warnings.catch_warnings`` cannot do that: it changes the filters of every thread.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pydicom.pixels  # noqa: F401 - makes the loggers that are silenced

_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg", "libjpeg", "jpeg_ls")
_lock = threading.Lock()


class _Reading(threading.local):
    depth = 0


_reading = _Reading()


class _WhileReading(type):
    """Every category of warning counts as a subclass in a thread that reads, none in another."""

    def __subclasscheck__(cls, other: type) -> bool:
        return _reading.depth > 0


class _QuotesTags(Warning, metaclass=_WhileReading):
    """Category of the warnings filter."""


def _say(record: logging.LogRecord) -> bool:
    return _reading.depth == 0


def _silence_loggers() -> None:
    # A filter does not reach the children of its logger.
    for name in tuple(logging.root.manager.loggerDict):
        if name.partition(".")[0] in _LOGGERS:
            logging.getLogger(name).addFilter(_say)


_silence_loggers()


@contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings, and log lines of pydicom and its codecs, of this thread."""
    with _lock:
        # The first filter decides, and other code may have put its own there since.
        if not warnings.filters or warnings.filters[0][2] is not _QuotesTags:
            warnings.simplefilter("ignore", _QuotesTags)
    _reading.depth += 1
    try:
        yield
    finally:
        _reading.depth -= 1
