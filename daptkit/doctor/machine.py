"""Interpreter, processors and memory."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from daptkit.doctor.check import Check, error, fine, warning

OLDEST_PYTHON = (3, 11)
_LEAST_MEMORY = 2 * 2**30  # torch, the images of a small task and a training step
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def check_python() -> Check:
    """Return whether the interpreter is new enough, and which one it is."""
    finding = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return error("python", finding, f"make a new environment with Python {oldest} or newer")
    return fine("python", finding)


def check_machine() -> Check:
    """Return processors and free memory of this machine, or of the container's share of it."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    free = free_memory()
    if free is None:
        return fine("machine", f"{cpus} CPUs")
    finding = f"{cpus} CPUs, {readable(free)} of memory free"
    if free < _LEAST_MEMORY:
        return warning("machine", finding, "end other programs, or use a smaller --batch-size")
    return fine("machine", finding)


def free_memory() -> int | None:
    """Return the bytes a new process may use, ``None`` where the system does not say."""
    found = [n for n in (_free_of_the_machine(), _free_of_the_group()) if n is not None]
    return min(found, default=None)


def readable(n: int) -> str:
    """Return a number of bytes as people read it: ``"12.3 GB"``, ``"40 MB"``."""
    return f"{n / 2**30:.1f} GB" if n >= 2**30 else f"{n / 2**20:.0f} MB"


def _free_of_the_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _free_of_the_group() -> int | None:
    """Return what a container's limit leaves; its file says ``max`` where there is none."""
    try:
        limit = (_CONTROL_GROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (_CONTROL_GROUP / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return max(0, int(limit) - int(used)) if limit.isdecimal() else None
