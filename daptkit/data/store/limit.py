"""The size of the decode cache: its limit, what it holds, and making room."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daptkit.cachedir import default_cache_dir
from daptkit.data.store.layout import LOCK, layout_files, layout_folders, remove_layout
from daptkit.data.store.shard import INDEX, count_records
from daptkit.errors import UsageError

LIMIT_VARIABLE = "DAPTKIT_CACHE_LIMIT"
"""Environment variable that holds the limit in GiB."""

DEFAULT_LIMIT = 20 * 2**30
"""Bytes that the decoded images of all layouts may take."""


@dataclass(frozen=True, kw_only=True)
class LayoutUse:
    """What a layout takes.

    Args:
        folder: its folder.
        bytes: size of its files, unfinished ones included.
        images: number of its records.
        used: when it was last opened, seconds since the epoch.
    """

    folder: Path
    bytes: int
    images: int
    used: float


def decoded_folder() -> Path:
    """Return where decoded images are kept by default."""
    return default_cache_dir() / "decoded"


def cache_limit() -> int:
    """Return the limit in bytes: ``$DAPTKIT_CACHE_LIMIT`` in GiB, else 20 GiB.

    Raises:
        UsageError: the variable holds something else than a number from 0.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip()
    if not text:
        return DEFAULT_LIMIT
    try:
        gib = float(text)
    except ValueError:
        gib = math.nan
    if not 0 <= gib < math.inf:
        raise UsageError(f"{LIMIT_VARIABLE} is a number of GiB from 0, such as 20, not {text!r}.")
    return int(gib * 2**30)


def layouts_in(root: Path) -> list[LayoutUse]:
    """Return what each layout in a cache takes, the longest unused first."""
    return sorted(map(_look_at, layout_folders(root)), key=lambda use: use.used)


def make_room(root: Path, own: Path, needed: int, limit: int) -> bool:
    """Remove layouts that nobody uses, the longest unused first, until something fits.

    Args:
        root: folder of the cache.
        own: a layout that stays.
        needed: bytes that shall fit.
        limit: bytes that the cache may take.

    Returns:
        Whether there is room. Where removing could not make enough, nothing is removed.
    """
    uses = layouts_in(root)
    excess = sum(use.bytes for use in uses) + needed - limit
    others = [use for use in uses if use.folder != own]
    if excess > sum(use.bytes for use in others):
        return False
    for use in others:
        if excess <= 0:
            break
        excess -= _try_remove(use.folder)
    return excess <= 0


def _try_remove(folder: Path) -> int:
    try:
        return remove_layout(folder) or 0
    except OSError:  # another user's: it stays, and the next one is tried
        return 0


def _look_at(folder: Path) -> LayoutUse:
    sizes = [(path, _size(path)) for path in layout_files(folder)]
    return LayoutUse(
        folder=folder,
        bytes=sum(size for _, size in sizes),
        images=_images(sizes),
        used=_last_use(folder),
    )


def _images(sizes: Sequence[tuple[Path, int]]) -> int:
    return sum(count_records(size) for path, size in sizes if path.suffix == INDEX)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # finished or removed meanwhile
        return 0


def _last_use(folder: Path) -> float:
    try:
        return (folder / LOCK).stat().st_mtime
    except FileNotFoundError:
        return 0.0
