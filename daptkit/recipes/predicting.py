"""Predictions of a run for further images."""

from __future__ import annotations

from pathlib import Path

from daptkit.data import read_table
from daptkit.recipes.inference import load_run, run_model
from daptkit.run import atomic_write
from daptkit.train.deliver import predictions_csv
from daptkit.train.plugins import plugin_readers
from daptkit.train.progress import Reporter, SilentReporter


def predict(
    run: str | Path,
    images: str | Path,
    *,
    out: str | Path,
    domain: str = "target",
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: int = 0,
    reporter: Reporter | None = None,
) -> Path:
    """Predict images with the model of a run and write a CSV.

    Args:
        run: run folder, or a model folder.
        images: PATH of images; labels there are not read.
        out: CSV to write: path, split, one probability a class, prediction, confidence.
        domain: ``"target"``, or ``"source"`` for images of the source site.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        skip_unreadable: tolerate and list up to this many unreadable images.
        reporter: where progress goes.

    Raises:
        DataError: images or model that cannot be used.
    """
    report = reporter or SilentReporter()
    loaded, rule = load_run(run, domain)
    readers = plugin_readers(report.line)
    table = read_table(
        images, domain=domain, labelled=False, log=report.line, extensions=tuple(readers)
    )
    table, logits = run_model(
        loaded,
        table,
        readers,
        device=device,
        workers=workers,
        skip_unreadable=skip_unreadable,
        reporter=report,
    )
    atomic_write(Path(out), predictions_csv(table, logits, rule, domain))
    return Path(out)
