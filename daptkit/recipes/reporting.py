"""The report page of a finished run."""

from __future__ import annotations

from pathlib import Path

from daptkit import report
from daptkit.train.progress import Reporter, SilentReporter


def build_report(
    run: str | Path,
    *,
    remeasure: bool = False,
    device: str = "auto",
    workers: int | None = None,
    trust: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Build ``report.html`` and ``figures/`` of a finished run again.

    The page is drawn from ``report.json`` and ``embedding.csv``; where they are missing, models and
    data of the run are measured first.

    Args:
        run: run folder.
        remeasure: measure in any case.
        device: where the models run: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        trust: load a weights file that carries Python objects, where models are measured.
        reporter: where progress goes.

    Returns:
        The path of the page.

    Raises:
        DataError: there is no such run, it is not finished, or its images have changed.
        DaptkitError: the page cannot be written.
    """
    return report.build_report(
        run,
        remeasure=remeasure,
        device=device,
        workers=workers,
        trust=trust,
        reporter=reporter or SilentReporter(),
    )
