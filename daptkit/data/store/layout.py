"""Layouts of the decode cache: their names and locks, what is left behind, and their removal.

Whoever uses a layout holds a shared lock on its ``.lock``. Leftovers and whole layouts are removed
under the exclusive lock, which is never waited for: it is free only while nobody uses the layout.
Locks end with their process, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from daptkit.data.store.shard import DAMAGED, INDEX, RECORDS

FORMAT = 1
"""Raised when the meaning of a record changes, so that older ones are not read."""

LOCK = ".lock"
"""Name of the lock file of a layout, and of the one of the whole cache."""

_LAYOUT_NAME = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[0-9a-f]{32}\.(bin|idx|bad)|\.[0-9a-f]{32}\.(bin|idx)\.[0-9a-f]{32}")
_PATIENCE = 10.0  # seconds


def layout_name(conversion: Mapping[str, Any], shape: Sequence[int], dtype: np.dtype[Any]) -> str:
    """Return the sha256, in hex, of what all records of a layout have in common.

    Args:
        conversion: JSON values that say how pixels become the record.
        shape: (C, H, W) of a record.
        dtype: type of a record.
    """
    common = {
        "format": FORMAT,
        "conversion": dict(conversion),
        "shape": list(shape),
        "dtype": dtype.str,
    }
    text = json.dumps(common, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def layout_folders(root: Path) -> list[Path]:
    """Return the layouts in a cache; anything else there is not ours."""
    try:
        found = [p for p in root.iterdir() if _LAYOUT_NAME.fullmatch(p.name) and p.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)


def layout_files(folder: Path) -> list[Path]:
    """Return the files of a layout, finished or not; an index comes before its records."""
    try:
        ours = [path for path in folder.iterdir() if _FILE_NAME.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # removed meanwhile, never made, or another user's
    return sorted(ours, key=lambda path: (path.suffix != INDEX, path.name))


def hold_layout(folder: Path) -> int:
    """Make a layout where there is none, remove leftovers if nobody uses it, and use it.

    Returns:
        The handle whose shared lock keeps the layout; closing it lets go.

    Raises:
        OSError: the folder cannot be made or locked.
    """
    # Decoded images are patients' data. Who wants to share them makes the folder beforehand.
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        try:
            folder.mkdir(exist_ok=True)
            handle = _open_lock(folder / LOCK)
        except FileNotFoundError:
            if folder.parent.is_dir():  # removed by another process between the two steps
                continue
            raise
        try:
            if _try_exclusive(handle):
                _remove_leftovers(folder)
            # The lock is let go for a moment, in which another process may remove the layout.
            fcntl.flock(handle, fcntl.LOCK_SH)
            if _is_still_there(handle, folder / LOCK):
                # The time of last use; a folder that cannot be written is not ours to tidy.
                with contextlib.suppress(OSError):
                    os.utime(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def remove_layout(folder: Path) -> int | None:
    """Remove a layout that nobody uses.

    Returns:
        The bytes that became free; ``None`` where it is in use.

    Raises:
        OSError: a file cannot be removed.
    """
    try:
        handle = _open_lock(folder / LOCK)
    except FileNotFoundError:
        return 0
    try:
        if not _try_exclusive(handle) or not _is_still_there(handle, folder / LOCK):
            return None
        freed = 0
        for path in layout_files(folder):
            size = path.stat().st_size
            path.unlink()
            freed += size
        (folder / LOCK).unlink()
        # Another process may have begun to use the folder again, or a user put something there.
        with contextlib.suppress(OSError):
            folder.rmdir()
        return freed
    finally:
        os.close(handle)


@contextlib.contextmanager
def publishing(root: Path) -> Iterator[None]:
    """Let one process at a time look what is there and add to it.

    After ten seconds it goes on without the lock, which a stopped process may hold for ever: what
    can happen is a record that is there twice.

    Raises:
        OSError: the lock cannot be made.
    """
    handle = _open_lock(root / LOCK)
    try:
        end = time.monotonic() + _PATIENCE
        while not _try_exclusive(handle) and time.monotonic() < end:
            time.sleep(0.01)
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        # A cache that another user or a read-only disk holds can still be read.
        try:
            return os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise error from None


def _try_exclusive(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left, and damaged shards; needs the exclusive lock."""
    files = layout_files(folder)
    names = {path.name for path in files}
    for path in files:
        stem = path.stem
        whole = {stem + RECORDS, stem + INDEX} <= names and stem + DAMAGED not in names
        if not whole:
            # In a folder that cannot be written they stay; nobody reads them.
            with contextlib.suppress(OSError):
                path.unlink()
