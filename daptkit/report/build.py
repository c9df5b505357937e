"""Building the report of a run: measured from its models, or drawn again from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daptkit.errors import DaptkitError, UsageError
from daptkit.report.finished import check_run
from daptkit.report.page import read_report, write_page
from daptkit.run import RunFolder, write_json

if TYPE_CHECKING:
    from daptkit.report.embedder import Embedder
    from daptkit.train.adaptation import Trained
    from daptkit.train.progress import Reporter


def build_report(
    run: str | Path,
    *,
    remeasure: bool = False,
    true_scores: Mapping[str, Any] | None = None,
    device: str = "auto",
    workers: int | None = None,
    trust: bool = False,
    reporter: Reporter,
) -> Path:
    """Write report.html and figures/ of a finished run and return the path of the page.

    Where ``report.json`` and ``embedding.csv`` are there, the page is drawn from them; else, or to
    ``remeasure``, models and data are loaded and measured first.

    Args:
        run: the run folder.
        remeasure: measure again even so.
        true_scores: ``{"why", "scores": {model: score}}`` where the target's labels are known;
            those of an earlier report stay unless given anew.
        device: where models run: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        trust: load a weights file that carries Python objects, where models are measured.
        reporter: where progress goes.

    Raises:
        DataError: there is no such run, it is not finished, or its data were changed.
        UsageError: true scores of other models.
        DaptkitError: ``report.json`` is damaged, or the page cannot be written.
    """
    folder = RunFolder(run)
    check_run(folder)
    with folder.locked():
        measured = folder.report_data.is_file() and folder.embedding.is_file()
        if measured and not remeasure:
            if true_scores is not None:
                report = read_report(folder)
                _check_scores(true_scores, report["models"])
                write_json(folder.report_data, {**report, "true_scores": dict(true_scores)})
            return write_page(folder)
        _measure_again(folder, true_scores, device, workers, trust, reporter)
        return write_page(folder)


def report_trained(
    trained: Trained, embedder: Embedder, true_scores: Mapping[str, Any] | None = None
) -> Path:
    """Write everything of the report of a run whose models are in memory; return the page's path.

    Args:
        trained: the run.
        embedder: computes the embedding meanwhile.
        true_scores: as for :func:`build_report`.

    Raises:
        UsageError: true scores of other models.
        DaptkitError: the report cannot be written.
    """
    with trained.folder.locked():
        write_measures(trained, embedder, true_scores)
        return write_page(trained.folder)


def write_measures(
    trained: Trained, embedder: Embedder, true_scores: Mapping[str, Any] | None = None
) -> None:
    """Measure a run and write ``embedding.csv`` and ``report.json``.

    Args:
        trained: the run.
        embedder: computes the embedding meanwhile.
        true_scores: as for :func:`build_report`.

    Raises:
        UsageError: true scores of other models.
        DaptkitError: a file cannot be written, or memory ran out.
    """
    from daptkit.report.embedding import write_points
    from daptkit.report.measure import measure_run, models_of
    from daptkit.train.guard import memory_guard

    if true_scores is not None:
        _check_scores(true_scores, list(models_of(trained)))
    with memory_guard("the models are kept; build the report with 'daptkit report' on the CPU"):
        measured = measure_run(trained, embedder, true_scores)
    write_points(trained.folder, measured.points)
    write_json(trained.folder.report_data, measured.data)


def _measure_again(
    folder: RunFolder,
    true_scores: Mapping[str, Any] | None,
    device: str,
    workers: int | None,
    trust: bool,
    reporter: Reporter,
) -> None:
    # Drawing a page needs no torch; only measuring does.
    from daptkit.report.embedder import Embedder
    from daptkit.report.restore import restore

    with Embedder() as embedder:
        trained = restore(
            folder,
            reporter,
            device=device,
            workers=workers,
            trust=trust,
            ready=embedder.warm_up,
        )
        reporter.line("measuring what the report shows")
        write_measures(trained, embedder, true_scores or _known_scores(folder, reporter))


def _check_scores(true_scores: Mapping[str, Any], models: Sequence[str]) -> None:
    if set(true_scores) != {"why", "scores"} or set(true_scores["scores"]) != set(models):
        raise UsageError(
            "true_scores is {'why': sentence, 'scores': {model: score}} for each of"
            f" {', '.join(models)}."
        )


def _known_scores(folder: RunFolder, reporter: Reporter) -> dict[str, Any] | None:
    """Return the true scores of the earlier report, which no measuring brings back."""
    if not folder.report_data.is_file():
        return None
    try:
        known: dict[str, Any] | None = read_report(folder).get("true_scores")
    except DaptkitError as error:
        reporter.line(f"true scores of the earlier report are lost: {error}")
        return None
    return known
