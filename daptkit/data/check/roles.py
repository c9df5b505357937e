"""Whether a PATH is the labelled source or the unlabelled target."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from daptkit.data.folder import SPLITS
from daptkit.data.readers import Readers
from daptkit.data.sources import read_table

ROLES = ("auto", "source", "target")


def choose_role(path: str | Path, role: str, readers: Readers) -> str:
    """Return ``"source"`` or ``"target"``.

    Args:
        path: what the user named.
        role: one of :data:`ROLES`; ``"auto"`` is the source where there are labels.
        readers: further formats of images.

    Raises:
        DataError: nothing usable is there.
    """
    if role != "auto":
        return role
    where = Path(path)
    labelled = _has_class_folders(where, readers) if where.is_dir() else has_labels(where)
    return "source" if labelled else "target"


def has_labels(path: Path) -> bool:
    """Return whether a manifest or an archive has labels, right or wrong."""
    if path.suffix.lower() == ".npz":
        return _has_label_arrays(path)
    if path.suffix.lower() == ".csv":
        return _has_label_column(path)
    return False


def _has_class_folders(root: Path, readers: Readers) -> bool:
    names = read_table(root, domain="target", labelled=False, readers=readers).names
    folders = (Path(name).parts[:-1] for name in names)
    return any(len(parts) > (parts[:1] in {(split,) for split in SPLITS}) for parts in folders)


def _has_label_arrays(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return any(f"{split}_labels" in getattr(archive, "files", ()) for split in SPLITS)
    except (OSError, ValueError, EOFError):  # what is wrong is told when the images are listed
        return False


def _has_label_column(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = [cell.strip() for cell in next(rows, [])]
            if "label" not in header:
                return False
            column = header.index("label")
            return any(row[column].strip() for row in rows if len(row) > column)
    except (OSError, UnicodeDecodeError, csv.Error):  # likewise
        return False
