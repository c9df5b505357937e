"""A manifest of the images that were read."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from daptkit.data.check.scan import Scan
from daptkit.data.check.summary import covariate
from daptkit.data.image import COVARIATES
from daptkit.data.manifest import COLUMNS
from daptkit.data.refs import FileRef
from daptkit.data.table import ImageTable
from daptkit.errors import UsageError
from daptkit.run import atomic_write

_ALWAYS = ("path", "label", "patient_id", "site", "split")
"""Columns that are written where they are empty, to be filled in."""


def manifest_path(file: str | Path) -> Path:
    """Return where a manifest can be written.

    Raises:
        UsageError: the name does not end with ``.csv``, or there is such a file: hours of typing
            may be in it.
    """
    path = Path(file)
    if path.suffix.lower() != ".csv":
        raise UsageError(f"--write-manifest '{path}': a manifest's name ends with .csv.")
    if path.exists():
        raise UsageError(f"--write-manifest '{path}' exists; name a new file, or remove it.")
    return path


def require_files(table: ImageTable) -> None:
    """Refuse images that a manifest cannot name.

    Raises:
        UsageError: they are rows of an array.
    """
    if not all(isinstance(ref, FileRef) for ref in table.refs):
        raise UsageError("--write-manifest lists image files; an .npz archive needs no manifest.")


def write_manifest(scan: Scan, path: Path) -> list[tuple[str, str]]:
    """Write a manifest of the readable images, such that ``adapt`` reads the same table from it.

    Args:
        scan: the images that were read, all of them files.
        path: file to write; paths in it are relative to its folder.

    Returns:
        Name and reason of each image that is left out.

    Raises:
        DaptkitError: it cannot be written.
    """
    table = scan.table
    folder = Path(os.path.realpath(path.absolute().parent))
    left_out = scan.unreadable
    rows = []
    for row in scan.readable:
        cells = _cells(scan, row, folder)
        if _is_kept(cells["path"]):
            rows.append(cells)
        else:
            left_out.append((table.names[row], "a name that a manifest cannot hold"))
    used = [name for name in COLUMNS if name in _ALWAYS or any(cells[name] for cells in rows)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, used, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue())
    return left_out


def _cells(scan: Scan, row: int, folder: Path) -> dict[str, str]:
    table, facts = scan.table, scan.facts[row]
    ref = table.refs[row]
    assert isinstance(ref, FileRef) and facts is not None
    cells = {
        "path": _relative(ref.path, folder),
        "label": _cell(table.labels, row),
        "patient_id": _cell(table.patients, row),
        "site": _cell(table.sites, row),
        "split": table.splits[row],
        "frame": "" if ref.frame is None else str(ref.frame),
        "study_id": _cell(table.extra.get("study_id"), row),
        "series_id": _cell(table.extra.get("series_id"), row),
    }
    return cells | {name: covariate(table, row, facts, name) for name in COVARIATES}


def _relative(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, whichever of the two is reached through links."""
    real = Path(os.path.realpath(path.absolute().parent)) / path.name
    return Path(os.path.relpath(real, folder)).as_posix()


def _is_kept(path: str) -> bool:
    """Whether a manifest's reader sees the same path: UTF-8, and no white space at the ends."""
    return path == path.strip() and not any("\ud800" <= letter <= "\udfff" for letter in path)


def _cell(column: tuple[str, ...] | None, row: int) -> str:
    return "" if column is None else column[row]
