"""CSV manifests: ``path,label,patient_id,site,split,frame`` and optional columns."""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daptkit.data.image import Log
from daptkit.data.refs import FileRef
from daptkit.data.table import EXTRA_COLUMNS, ImageTable
from daptkit.errors import DataError, did_you_mean

COLUMNS = ("path", "label", "patient_id", "site", "split", "frame", *EXTRA_COLUMNS)
"""Columns that mean something here; further ones are left alone."""

_SHOWN = 5
_ALIKE = 0.75


@dataclass(frozen=True)
class ManifestRow:
    """The cells of one line, by column."""

    line: int
    cells: dict[str, str]

    def frame(self, manifest: Path) -> int | None:
        """Return the frame that the line names, if it does.

        Raises:
            DataError: it is no number; the message names ``manifest``.
        """
        text = self.cells.get("frame", "")
        if not text:
            return None
        if not re.fullmatch(r"[0-9]{1,9}", text):
            raise DataError(
                f"'{manifest}' line {self.line}: frame '{text}' is not a number from 0."
            )
        return int(text)


def read_manifest(path: Path, *, domain: str, labelled: bool, log: Log) -> ImageTable:
    """List the images of a manifest, in its order.

    Only ``path`` is required; it is relative to the manifest (absolute paths and ``..`` are
    followed) and is shown as written. Ids and labels are text: ``01`` is not ``1``.

    Args:
        path: UTF-8 file, with or without a byte order mark.
        domain: name for messages.
        labelled: whether the column ``label`` is read.
        log: told of labels that are not read, and of columns whose name is nearly one of
            :data:`COLUMNS`.

    Raises:
        DataError: not UTF-8, no column ``path``, a malformed or duplicate row, missing files, no
            rows, or no labels where they are wanted.
    """
    header, rows = parse_manifest(path)
    frames = [row.frame(path) for row in rows]
    names = [
        row.cells["path"] if frame is None else f"{row.cells['path']}#{frame}"
        for row, frame in zip(rows, frames, strict=True)
    ]
    refs = [
        FileRef(path.parent / row.cells["path"], frame)
        for row, frame in zip(rows, frames, strict=True)
    ]
    _check_duplicates(path, rows, refs)
    _check_files(path, refs, names)
    if not labelled and any(_column("label", header, rows) or ()):
        log(f"labels of the {domain} are ignored.")
    _tell_of_columns(path, header, log)
    labels = _column("label", header, rows) if labelled else None
    if labelled and not any(labels or ()):
        raise DataError(
            f"'{path}' has no labels, and the {domain} needs them: fill column 'label'."
        )
    return ImageTable(
        domain=domain,
        names=tuple(names),
        refs=tuple(refs),
        splits=_column("split", header, rows) or ("",) * len(rows),
        labels=labels,
        patients=_column("patient_id", header, rows),
        sites=_column("site", header, rows),
        extra={
            name: column
            for name in EXTRA_COLUMNS
            if (column := _column(name, header, rows)) is not None
        },
    )


def parse_manifest(path: Path) -> tuple[list[str], list[ManifestRow]]:
    """Read the columns and rows of a CSV with at least a column ``path``.

    Raises:
        DataError: it cannot be read, is not UTF-8 or no CSV, or has no column ``path`` or no rows.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"'{path}' is not UTF-8 (byte {error.start}); save it as 'CSV UTF-8'."
        ) from error
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}.") from error
    if "\0" in text:
        raise DataError(f"'{path}' is not UTF-8 (it has zero bytes); save it as 'CSV UTF-8'.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [cell.strip() for cell in next(reader, [])]
        _check_header(path, header)
        rows = [_row(path, reader.line_num, header, cells) for cells in reader if any(cells)]
    except csv.Error as error:
        raise DataError(f"'{path}' line {reader.line_num} is not valid CSV: {error}.") from error
    if not rows:
        raise DataError(f"'{path}' lists no images.")
    return header, rows


def _check_header(path: Path, header: Sequence[str]) -> None:
    if "path" not in header:
        found = ", ".join(header) or "nothing"
        hint = did_you_mean("path", header)
        if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
            hint = " Cells must be separated by commas."
        raise DataError(f"'{path}' has no column 'path'; its first line has: {found}.{hint}")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise DataError(f"'{path}' has the column '{twice[0]}' twice.")


def _row(path: Path, line: int, header: Sequence[str], cells: Sequence[str]) -> ManifestRow:
    if len(cells) != len(header):
        raise DataError(f"'{path}' line {line} has {len(cells)} cells, not {len(header)}.")
    row = ManifestRow(line, {name: cell.strip() for name, cell in zip(header, cells, strict=True)})
    if not row.cells["path"]:
        raise DataError(f"'{path}' line {line} has an empty path.")
    return row


def _check_duplicates(path: Path, rows: Sequence[ManifestRow], refs: Sequence[FileRef]) -> None:
    first: dict[tuple[str, int | None], int] = {}
    here = Path.cwd()
    for row, ref in zip(rows, refs, strict=True):
        line = first.setdefault((os.path.normpath(here / ref.path), ref.frame), row.line)
        if line != row.line:
            raise DataError(
                f"'{path}' lists '{row.cells['path']}' twice, in lines {line} and {row.line}."
            )


def _check_files(path: Path, refs: Sequence[FileRef], names: Sequence[str]) -> None:
    missing = [name for ref, name in zip(refs, names, strict=True) if not ref.exists()]
    if missing:
        shown = ", ".join(f"'{name}'" for name in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        slash = ", with / between folders" if "\\" in missing[0] else ""
        raise DataError(
            f"{len(missing)} of {len(refs)} files of '{path}' are missing: {shown}{more}. Paths are"
            f" relative to the manifest{slash}, and need permission to read."
        )


def _column(
    name: str, header: Sequence[str], rows: Sequence[ManifestRow]
) -> tuple[str, ...] | None:
    return tuple(row.cells[name] for row in rows) if name in header else None


def _tell_of_columns(path: Path, header: Sequence[str], log: Log) -> None:
    """Tell of columns that are not read and were probably meant to be."""
    free = {_bare(name): name for name in COLUMNS if name not in header}
    for name in header:
        close = difflib.get_close_matches(_bare(name), free, n=1, cutoff=_ALIKE)
        if name not in COLUMNS and close:
            log(
                f"warning: column '{name}' of '{path}' is not read. Did you mean"
                f" '{free[close[0]]}'?"
            )


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())
