"""Predictions of a run for further images."""

from __future__ import annotations

from pathlib import Path

from daptkit.recipes.aggregation import find_units, unit_predictions_csv, unit_probabilities
from daptkit.recipes.inference import load_run, read_images, run_model
from daptkit.run import atomic_write
from daptkit.train.deliver import predictions_csv
from daptkit.train.progress import Reporter, SilentReporter


def predict(
    run: str | Path,
    images: str | Path,
    *,
    out: str | Path,
    domain: str = "target",
    aggregate: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: int = 0,
    cache: str | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Predict images with the model of a run and write a CSV.

    Args:
        run: run folder, or a model folder.
        images: PATH of images; labels there are not read.
        out: CSV to write: path, split, one probability a class, prediction, confidence.
        aggregate: ``"patient"`` or ``"study"``: one row for each, with the mean of its images'
            probabilities.
        domain: ``"target"``, or ``"source"`` for images of the source site.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        skip_unreadable: tolerate and list up to this many unreadable images.
        cache: folder of decoded images, ``"off"``, or ``None`` for the user's cache.
        reporter: where progress goes.

    Raises:
        DataError: images or model that cannot be used.
    """
    report = reporter or SilentReporter()
    loaded, rule = load_run(run, domain)
    table, readers = read_images(loaded, images, domain=domain, labelled=False, reporter=report)
    if aggregate is not None:
        find_units(table, aggregate)  # missing ids are an error before anything is decoded
    table, logits = run_model(
        loaded,
        table,
        readers,
        domain=domain,
        device=device,
        workers=workers,
        skip_unreadable=skip_unreadable,
        cache=cache,
        reporter=report,
    )
    if aggregate is None:
        text = predictions_csv(table, logits, rule, domain)
    else:
        units = find_units(table, aggregate)
        text = unit_predictions_csv(units, unit_probabilities(units, logits, rule, domain), rule)
    atomic_write(Path(out), text)
    return Path(out)
