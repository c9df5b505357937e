"""Records for the tests of the decode cache, and processes that use it."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.data.store import DecodeCache, DecodeStore

SHAPE = (3, 8, 8)
CONVERSION: dict[str, Any] = {"version": 2, "img_size": 8, "windows": {}}
PLENTY = 2**30


def keys(n: int, first: int = 0) -> list[bytes]:
    """The last byte of some keys is zero, which a careless array of bytes would drop."""
    made = [hashlib.sha256(b"%d" % i).digest() for i in range(first, first + n)]
    return [key[:-1] + b"\0" if i % 3 == 0 else key for i, key in enumerate(made, first)]


def images(n: int, first: int = 0, shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.uint8]:
    """Images (n, C, H, W), each decided by its number alone."""
    return np.stack(
        [
            np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
            for i in range(first, first + n)
        ]
    )


def open_store(root: Path, lines: list[str] | None = None, **changes: Any) -> DecodeStore:
    """A layout as a new process would open it."""
    arguments: dict[str, Any] = {"limit": PLENTY, **changes}
    shape, dtype = arguments.pop("shape", SHAPE), arguments.pop("dtype", np.uint8)
    conversion = arguments.pop("conversion", CONVERSION)
    log = (lambda line: None) if lines is None else lines.append
    return DecodeCache(root, log=log, **arguments).open(conversion, shape, dtype)


def fill(store: DecodeStore, n: int, first: int = 0) -> None:
    """Add images ``first`` to ``first + n``."""
    with store.writer() as writer:
        for key, image in zip(keys(n, first), images(n, first, store.shape), strict=True):
            writer.add(key, image.astype(store.dtype))


def read(store: DecodeStore, wanted: list[bytes]) -> npt.NDArray[Any]:
    """Read images that must all be there and sound."""
    slots = store.find(wanted)
    assert (slots >= 0).all()
    out = np.empty((len(wanted), *store.shape), store.dtype)
    assert store.read(slots, out).tolist() == []
    return out


def files(root: Path) -> list[str]:
    """Names of the files of all layouts, without the locks."""
    return sorted(p.name for p in root.rglob("*") if p.is_file() and p.name != ".lock")


def in_child(action: Callable[[], None]) -> int:
    """Start a process that runs the action and ends with 0, or with 1 where it raises."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    finally:
        os._exit(code)


def end_of(child: int) -> int:
    """Wait for a process and return its exit code, minus the signal that ended it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the process did not end")
