"""The boundaries of the trainer: whose fault an exception is, in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from daptkit.errors import DaptkitError, PluginError, UsageError


@contextlib.contextmanager
def plugin_guard(method: str, package: str, doing: str) -> Iterator[None]:
    """Turn whatever a plugin raises into a :class:`PluginError` that names it.

    Errors that already carry an exit code, lack of memory and a lost process pass unchanged: none
    of them is the plugin's doing.
    """
    try:
        yield
    except DaptkitError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or is_lost_process(error):
            raise
        raise PluginError(
            f"method '{method}' ({package}) failed in {doing}: {type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def methods_guard(packages: Mapping[str, str], doing: str) -> Iterator[None]:
    """Blame all methods of a run, by name to package, for what only their sum can raise."""
    if not packages:
        yield
        return
    with plugin_guard("+".join(packages), ", ".join(packages.values()), doing):
        yield


@contextlib.contextmanager
def memory_guard(advice: str) -> Iterator[None]:
    """Turn lack of memory, on any device, into one line with advice.

    Raises:
        DaptkitError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DaptkitError(f"out of memory; {advice}.") from error


@contextlib.contextmanager
def processes_guard() -> Iterator[None]:
    """Turn the end of another process of the run, which collectives notice, into one line.

    Raises:
        DaptkitError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise DaptkitError(
            "another process of the run has ended, so this one ends too; its own message says why."
            " Continue from the last checkpoint with --resume."
        ) from error


@contextlib.contextmanager
def batchnorm_guard(parts: int = 1) -> Iterator[None]:
    """Turn BatchNorm's refusal of a single value per channel into one line.

    Args:
        parts: how many parts a batch is passed in.

    Raises:
        UsageError: a batch is too small for the network's BatchNorm.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        few, cure = "--batch-size 1 is too small", "--batch-size 2 or more"
        if parts > 1:
            few = f"--grad-accum-steps {parts} leaves parts that are too small"
            cure = f"--grad-accum-steps {parts // 2} or fewer"
        raise UsageError(
            f"{few}: a BatchNorm layer has one value per channel, which has no variance."
            f" Use {cure}, or --bn frozen."
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out; torch's CPU allocator has no own type."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def is_lost_process(error: Exception) -> bool:
    """Whether an exception says that another process is gone; gloo's errors have no own type."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("gloo" in text or "closed by peer" in text)
