"""Labels of some target images that the user has set aside to check a diagnosis against."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from daptkit.data.labels import refuse_unknown
from daptkit.data.manifest import ManifestRow, parse_manifest
from daptkit.data.refs import FileRef
from daptkit.data.table import ImageTable, Indices
from daptkit.errors import DataError, did_you_mean

_SHOWN = 5


def read_audit_labels(
    path: Path, table: ImageTable, rows: Indices, classes: tuple[str, ...]
) -> tuple[Indices, Indices]:
    """Read a CSV with columns ``path`` and ``label``: rows of the table and their class numbers.

    ``path`` is what ``predictions.csv`` shows of an image (relative to the target's PATH, or
    ``train/17`` of an array), or else a file, relative to the CSV; a column ``frame`` picks one of
    several. Rows with an empty label are left out.

    Args:
        path: the CSV.
        table: the target's images.
        rows: those that are diagnosed.
        classes: names of the classes, in the order of their numbers.

    Returns:
        Rows of the table, sorted, and class numbers, (L,) each.

    Raises:
        DataError: no such file or column, no label, an unknown class, an image that is not
            diagnosed or is listed twice.
    """
    header, cells = parse_manifest(path)
    if "label" not in header:
        raise DataError(
            f"'{path}' has no column 'label'; its first line has: {', '.join(header)}."
            f"{did_you_mean('label', header)}"
        )
    labelled = [row for row in cells if row.cells["label"]]
    if not labelled:
        raise DataError(f"'{path}' has no labels: fill column 'label'.")
    refuse_unknown([row.cells["label"] for row in labelled], classes, f"'{path}' has")
    found = _find(path, labelled, table, rows)
    order = np.argsort(found, kind="stable")
    numbers = [classes.index(row.cells["label"]) for row in labelled]
    return found[order], np.asarray(numbers, dtype=np.int64)[order]


def _find(path: Path, labelled: list[ManifestRow], table: ImageTable, rows: Indices) -> Indices:
    """Return the row of the table that each labelled one is about."""
    places: dict[object, int] = {}
    for row in rows.tolist():
        places[table.names[row]] = row
        ref = table.refs[row]
        if isinstance(ref, FileRef):
            places[_file_key(ref.path, ref.frame)] = row
    found: list[int | None] = []
    for one in labelled:
        name, frame = one.cells["path"], one.frame(path)
        shown = name if frame is None else f"{name}#{frame}"
        key = shown if shown in places else _file_key(path.parent / name, frame)
        found.append(places.get(key))
    missing = [one for one, row in zip(labelled, found, strict=True) if row is None]
    if missing:
        shown = ", ".join(f"'{one.cells['path']}'" for one in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise DataError(
            f"{len(missing)} of {len(labelled)} labelled images of '{path}' are not among the"
            f" target's images diagnosed: {shown}{more}. Column 'path' is as in predictions.csv, or"
            " a file relative to the CSV."
        )
    known = [row for row in found if row is not None]
    first: dict[int, int] = {}
    for one, row in zip(labelled, known, strict=True):
        if first.setdefault(row, one.line) != one.line:
            raise DataError(
                f"'{path}' lists '{table.names[row]}' twice, in lines {first[row]} and {one.line}."
            )
    return np.asarray(known, dtype=np.int64)


def _file_key(path: Path, frame: int | None) -> tuple[str, int | None]:
    return os.path.normpath(Path.cwd() / path), frame
