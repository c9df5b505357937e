"""Scores of a run against labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daptkit.assess.metrics import score
from daptkit.data import choose_split, encode_labels, read_table
from daptkit.recipes.inference import load_run, run_model
from daptkit.train.plugins import plugin_readers
from daptkit.train.progress import Reporter, SilentReporter


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    domain: str = "target",
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Score the model of a run on labelled images.

    Args:
        run: run folder, or a model folder.
        data: PATH of labelled images.
        split: split to score; ``test`` where it exists, else everything; ``"all"`` for everything.
        domain: ``"target"`` or ``"source"``: selects the prior.
        n_bootstrap: resamples behind each interval.
        seed: seed of the resampling.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        skip_unreadable: tolerate and list up to this many unreadable images.
        reporter: where progress goes.

    Returns:
        ``{"n": ..., "accuracy": {"value": ..., "low": ..., "high": ...}, ...}``; see
        :func:`daptkit.assess.metrics.score`.

    Raises:
        DataError: labels or images that cannot be used.
    """
    report = reporter or SilentReporter()
    loaded, rule = load_run(run, domain)
    readers = plugin_readers(report.line)
    table = read_table(
        data, domain=domain, labelled=True, log=report.line, extensions=tuple(readers)
    )
    table = table.select(choose_split(table, split, "test"))
    encode_labels(table, rule.classes)  # an unknown class is an error before anything is decoded
    table, logits = run_model(
        loaded,
        table,
        readers,
        device=device,
        workers=workers,
        skip_unreadable=skip_unreadable,
        reporter=report,
    )
    return score(
        rule.posterior(logits, domain),
        encode_labels(table, rule.classes),
        rule.predict(logits, domain, "map"),
        rule.predict(logits, domain, "balanced"),
        rule.classes,
        groups=table.groups(),
        patients_known=table.patients_known,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
