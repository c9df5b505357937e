"""Events of a run as TensorBoard files below its folder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from daptkit.plugin import Event
from daptkit_tensorboard.plot import embedding_image

FOLDER = "tensorboard"
"""Where the files lie in a run folder."""

_open: dict[Path, SummaryWriter] = {}
"""The writers of models in training."""


def log(event: Event) -> None:
    """Write an event; those of a model in training go to a folder of that model.

    Args:
        event: with the run's folder, which is never written down.
    """
    if not event.folder:
        return
    root = Path(event.folder) / FOLDER
    if event.phase:
        _log_training(root / _file_name(event.phase), event)
        return
    with _writer(root / "run") as writer:
        _log_run(writer, event)


def _log_training(folder: Path, event: Event) -> None:
    if event.kind == "fit_start":
        _close(folder)
        # What an interrupted run wrote beyond its checkpoint will come again.
        purge = event.step if event.step > 0 else None
        _open[folder] = _writer(folder, purge)
    writer = _open.get(folder)
    if writer is None:
        return
    prefix = {"log": "train", "epoch_end": "epoch"}.get(event.kind, event.kind)
    for name, value in event.values.items():
        _add_scalar(writer, f"{prefix}/{name}", value, event.step)
    if event.kind == "epoch_end":
        writer.flush()
    if event.kind == "fit_end":
        _close(folder)


def _writer(folder: Path, purge: int | None = None) -> SummaryWriter:
    # Without a number, a second writer within a second would take the first one's file.
    number = len(list(folder.glob("events.out.tfevents.*")))
    return SummaryWriter(str(folder), purge_step=purge, filename_suffix=f".{number:04d}")


def _close(folder: Path) -> None:
    writer = _open.pop(folder, None)
    if writer is not None:
        writer.close()


def _log_run(writer: SummaryWriter, event: Event) -> None:
    if event.kind == "run_start":
        writer.add_text("options", _table({**event.text, **event.values}))
    elif event.kind == "run_end":
        for name, value in event.values.items():
            _add_scalar(writer, f"result/{name}", value, 0)
        if event.text:
            writer.add_text("verdict", _table(event.text))
    elif event.kind == "report":
        writer.add_text("report", "\n".join(f"- {name}" for name in event.files))
        if "embedding.csv" in event.files:
            table = Path(event.folder) / "embedding.csv"
            image = embedding_image(table)
            if image is not None:
                writer.add_image("embedding", image, dataformats="HWC")


def _add_scalar(writer: SummaryWriter, tag: str, value: float, step: int) -> None:
    # A score that is not defined is NaN; tensorboardX would print a line for each.
    if math.isfinite(value):
        writer.add_scalar(tag, value, step)


def _table(named: Mapping[str, float | str]) -> str:
    """Return a table in Markdown."""
    rows = [f"| {name} | {_shown(value)} |" for name, value in named.items()]
    return "\n".join(["| name | value |", "|---|---|", *rows])


def _shown(value: float | str) -> str:
    if isinstance(value, str):
        return value.replace("\n", "; ").replace("|", "\\|")
    return f"{value:.6g}" if math.isfinite(value) else str(value)


def _file_name(phase: str) -> str:
    return re.sub(r"[^\w+-]+", "_", phase)
