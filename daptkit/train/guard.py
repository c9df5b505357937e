"""The boundary between host and plugin: whose fault an exception is, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from daptkit.errors import DaptkitError, PluginError


@contextlib.contextmanager
def plugin_guard(method: str, package: str, doing: str) -> Iterator[None]:
    """Turn whatever a plugin raises into a :class:`PluginError` that names it.

    Errors that already carry an exit code and out-of-memory pass unchanged: the latter is a matter
    of batch size, not of the plugin.
    """
    try:
        yield
    except (DaptkitError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise PluginError(
            f"method '{method}' ({package}) failed in {doing}: {type(error).__name__}: {error}"
        ) from error
