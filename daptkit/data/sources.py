"""Reading a user's PATH, in any of its four forms."""

from __future__ import annotations

from pathlib import Path

from daptkit.data.archive import read_npz
from daptkit.data.folder import read_folder
from daptkit.data.image import Log
from daptkit.data.manifest import read_manifest
from daptkit.data.readers import NO_READERS, Readers
from daptkit.data.table import ImageTable
from daptkit.errors import DataError


def read_table(
    path: str | Path,
    *,
    domain: str,
    labelled: bool,
    log: Log = lambda line: None,
    readers: Readers = NO_READERS,
) -> ImageTable:
    """List the images of a PATH: class folders, a folder, a CSV manifest or an ``.npz``.

    No pixel of a file is read here; the arrays of an ``.npz`` are.

    Args:
        path: what the user named.
        domain: ``"source"``, ``"target"`` or another name for messages.
        labelled: whether labels are wanted. If not, labels that are there are not read and the
            log says so, and folder names are never labels.
        log: takes one line for everything that was left out or is remarkable.
        readers: further formats of images.

    Raises:
        DataError: nothing usable is there, or labels are wanted and there are none.
    """
    where = Path(path)
    try:
        found = where.exists()
    except OSError as error:
        raise DataError(f"cannot read '{path}' (the {domain} images): {error.strerror}.") from error
    if not found:
        raise DataError(f"'{path}' does not exist (the {domain} images).")
    if where.is_dir():
        table = read_folder(where, domain=domain, labelled=labelled, log=log, readers=readers)
    elif where.suffix.lower() == ".csv":
        table = read_manifest(where, domain=domain, labelled=labelled, log=log)
    elif where.suffix.lower() == ".npz":
        table = read_npz(where, domain=domain, labelled=labelled, log=log)
    else:
        raise DataError(f"'{path}' is not a folder, a .csv manifest or an .npz archive.")
    _warn(table, log)
    return table


def _warn(table: ImageTable, log: Log) -> None:
    """Tell of what a run will leave out."""
    without = sum(not split for split in table.splits)
    if 0 < without < len(table):
        log(f"{without} images of the {table.domain} have no split: only split 'all' uses them.")
