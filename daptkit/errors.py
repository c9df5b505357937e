"""Errors a user can cause, each with the exit code the command line answers with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DaptkitError(Exception):
    """Base of every error that is reported as one clear message, without a traceback."""

    exit_code = 1
    told_elsewhere = False
    """Whether another process of the same run shows the message."""


class UsageError(DaptkitError):
    """An option, a name or a combination of options that cannot work (exit code 2)."""

    exit_code = 2


class DataError(DaptkitError):
    """Images, labels, manifests or model files that cannot be used (exit code 3)."""

    exit_code = 3


class PluginError(DaptkitError):
    """A plugin that is missing, broken or violates the contract (exit code 4)."""

    exit_code = 4


class NonFiniteLossError(DaptkitError):
    """A named loss became NaN or infinite; the last good checkpoint is kept (exit code 1)."""


class Terminated(DaptkitError):
    """SIGTERM arrived; a checkpoint was written (exit code 143)."""

    exit_code = 143


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
