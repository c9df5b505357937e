"""What the user's cache holds, and clearing it."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from daptkit.cachedir import default_cache_dir
from daptkit.data.store import cache_limit, decoded_folder, layouts_in, remove_layout
from daptkit.errors import UsageError
from daptkit.run import writing

DECODED = "decoded"
"""The decoded images, among the parts of the cache."""

# Names of finished and of unfinished entries. What has another name is not ours and stays.
_ENTRIES = {
    "features": r"[0-9a-f]{64}\.safetensors|(?P<unfinished>\.[0-9a-f]{64}\.safetensors\..+)",
    "stages": r"[0-9a-f]{64}\.json|(?P<unfinished>\.[0-9a-f]{64}\.json\..+)",
    "twins": r"[0-9a-f]{64}|(?P<unfinished>\.new-[0-9a-f]{32})",
}
_ABANDONED = 86400.0  # seconds after which nobody is still writing an entry

PARTS = (DECODED, *_ENTRIES)
"""The parts of the cache: decoded images, trunk features, distances at stages, twins."""


@dataclass(frozen=True, kw_only=True)
class CachePart:
    """A part of the cache.

    Args:
        folder: where it is.
        bytes: its size.
        entries: number of its entries: layouts of decoded images, features, models.
    """

    folder: Path
    bytes: int
    entries: int


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """What the cache holds.

    Args:
        images: number of decoded images.
        limit: bytes that the decoded images may take.
        parts: each part of the cache by its name.
    """

    images: int
    limit: int
    parts: dict[str, CachePart]


@dataclass(frozen=True, kw_only=True)
class Cleared:
    """What was removed from a part of the cache.

    Args:
        bytes: bytes that became free.
        entries: entries that were removed.
        in_use: entries that stay, since a running process uses them.
    """

    bytes: int
    entries: int
    in_use: int


def cache_info(cache: str | Path | None = None) -> CacheInfo:
    """Look at the cache; nothing is changed.

    Args:
        cache: folder of the decoded images, as given to ``adapt``; ``None`` for the user's cache.

    Raises:
        UsageError: there is no such folder, or ``$DAPTKIT_CACHE_LIMIT`` is malformed.
    """
    root = _decoded_root(cache)
    layouts = layouts_in(root)
    decoded = CachePart(folder=root, bytes=sum(use.bytes for use in layouts), entries=len(layouts))
    return CacheInfo(
        images=sum(use.images for use in layouts),
        limit=cache_limit(),
        parts={DECODED: decoded, **{name: _look_at(name) for name in _ENTRIES}},
    )


def clear_cache(*parts: str, cache: str | Path | None = None) -> dict[str, Cleared]:
    """Remove parts of the cache; what a running process uses, and what is not ours, stays.

    Args:
        *parts: which ones, of :data:`PARTS`; none for the decoded images.
        cache: folder of the decoded images, as given to ``adapt``; ``None`` for the user's cache.

    Returns:
        What was removed, by part.

    Raises:
        UsageError: there is no such folder or part.
        DaptkitError: something cannot be removed.
    """
    chosen = parts or (DECODED,)
    if unknown := [part for part in chosen if part not in PARTS]:
        raise UsageError(f"the cache has no part {unknown[0]!r}; its parts: {', '.join(PARTS)}.")
    root = _decoded_root(cache)
    return {part: _clear_decoded(root) if part == DECODED else _clear(part) for part in chosen}


def _decoded_root(cache: str | Path | None) -> Path:
    if cache is None:
        return decoded_folder()
    root = Path(cache)
    if not root.is_dir():
        raise UsageError(
            f"--cache '{root}': no such folder; leave --cache out to look at {decoded_folder()}."
        )
    return root


def _clear_decoded(root: Path) -> Cleared:
    freed, kept = [], 0
    for use in layouts_in(root):
        with writing(use.folder):
            size = remove_layout(use.folder)
        if size is None:
            kept += 1
        else:
            freed.append(size)
    return Cleared(bytes=sum(freed), entries=len(freed), in_use=kept)


def _clear(part: str) -> Cleared:
    freed = []
    for entry in _entries(part, unfinished_for=_ABANDONED):
        with writing(entry):
            freed.append(_size(entry))
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
    return Cleared(bytes=sum(freed), entries=len(freed), in_use=0)


def _look_at(part: str) -> CachePart:
    entries = _entries(part, unfinished_for=0.0)
    return CachePart(
        folder=default_cache_dir() / part, bytes=sum(map(_size, entries)), entries=len(entries)
    )


def _entries(part: str, *, unfinished_for: float) -> list[Path]:
    """Return the entries of a part; unfinished ones, which a run may be writing, from some age."""
    folder = default_cache_dir() / part
    if not folder.is_dir():
        return []
    found = []
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(_ENTRIES[part], path.name)
        if match and (not match["unfinished"] or _age(path) >= unfinished_for):
            found.append(path)
    return found


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # finished meanwhile
        return 0.0


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(_size(inner) for inner in path.iterdir())
        return path.lstat().st_size
    except FileNotFoundError:  # removed meanwhile
        return 0
