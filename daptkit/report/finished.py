"""Whether a folder holds a finished run, and its record."""

from __future__ import annotations

import json
from typing import Any

from daptkit.errors import DataError
from daptkit.run import RunFolder

FORMAT = 1
"""Version of report.json, which pages of another version are not drawn from."""


def check_run(folder: RunFolder) -> None:
    """Check that a folder is that of a finished run.

    Raises:
        DataError: it is not.
    """
    root = folder.root
    if not root.exists():
        raise DataError(f"the run '{root}' does not exist.")
    if not folder.config.is_file():
        raise DataError(f"'{root}' is not a run folder: it has no {folder.config.name}.")
    if not folder.record.is_file():
        raise DataError(
            f"the run '{root}' is not finished; finish it with"
            f" 'daptkit adapt --config {folder.config} --out {root} --resume'."
        )


def read_record(folder: RunFolder) -> dict[str, Any]:
    """Return ``run.json`` of a finished run.

    Raises:
        DataError: there is no such run, it is not finished, or the file is damaged.
    """
    check_run(folder)
    try:
        record = json.loads(folder.record.read_text(encoding="utf-8"))
        complete = isinstance(record["data"]["sha256"], dict) and "notes" in record["figures"]
    except (OSError, ValueError, LookupError, TypeError):
        complete = False
    if not complete:
        raise DataError(f"'{folder.record}' is damaged; run adapt again in a new --out.")
    found: dict[str, Any] = record
    return found
