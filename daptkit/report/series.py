"""Losses, learning rates and other values of a training over its steps, from metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daptkit.errors import DaptkitError


def training_series(path: Path) -> dict[str, Any]:
    """Return the series of one training.

    Args:
        path: ``metrics.jsonl``.

    Returns:
        ``{"step", "lr", "losses", "logged", "epoch_step", "epoch", "unfreeze"}``; ``losses``,
        ``logged`` and ``epoch`` hold one list a name, ``None`` where an entry lacks the name;
        ``unfreeze`` holds the steps of gradual unfreezing as they are.

    Raises:
        DaptkitError: the file is missing or not readable.
    """
    entries = _read(path)
    steps = [entry for entry in entries if entry["kind"] == "step"]
    epochs = [entry for entry in entries if entry["kind"] == "epoch"]
    losses = {"classification", *(name for entry in steps for name in entry.get("losses", ()))}
    columns = _columns(steps)
    return {
        "step": [entry["step"] for entry in steps],
        "lr": [entry["lr"] for entry in steps],
        "losses": {name: column for name, column in columns.items() if name in losses},
        "logged": {name: column for name, column in columns.items() if name not in losses},
        "epoch_step": [entry["step"] for entry in epochs],
        "epoch": _columns(epochs),
        "unfreeze": [entry for entry in entries if entry["kind"] == "unfreeze"],
    }


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DaptkitError(
            f"cannot read '{path}', which the report shows: {type(error).__name__}. Run adapt"
            " again in a new --out."
        ) from error


def _columns(entries: Sequence[dict[str, Any]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for entry in entries for name in entry["values"])
    return {name: [entry["values"].get(name) for entry in entries] for name in names}
