"""Room and rights in the working folder and in the cache."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from daptkit.cachedir import default_cache_dir
from daptkit.doctor.check import Check, fine, warning
from daptkit.doctor.machine import readable

_LEAST_FREE = 2**30  # checkpoints and models of a small run


def check_working_folder() -> Check:
    """Return whether a run folder could be made here."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    if reason := _refusal(here):
        return warning(
            "disk",
            f"nothing can be written here ({reason})",
            "run from, or give an --out in, a folder of yours",
        )
    if free < _LEAST_FREE:
        return warning("disk", f"{readable(free)} free here", "free space, or give another --out")
    return fine("disk", f"{readable(free)} free here")


def check_cache() -> Check:
    """Return where the cache is, its size, and whether it can be written."""
    folder = default_cache_dir()
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    cure = "set DAPTKIT_CACHE to a folder of yours with free space"
    if reason := _refusal(existing):
        return warning(
            "cache",
            f"{folder} cannot be written ({reason}): frozen runs stop, and source-only models "
            "are trained anew each time",
            cure,
        )
    free = shutil.disk_usage(existing).free
    finding = f"{folder}, {readable(_size(folder))} used, {readable(free)} free"
    return warning("cache", finding, cure) if free < _LEAST_FREE else fine("cache", finding)


def _refusal(folder: Path) -> str:
    """Return why no file can be made in a folder; asking for rights says too little of disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _size(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).lstat().st_size
            except OSError:  # another run removed it meanwhile
                continue
    return total
