"""report.html: made of report.json and embedding.csv, and of nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from daptkit.errors import DaptkitError
from daptkit.report.figures import Plot, Points, draw, read_points
from daptkit.report.finished import FORMAT
from daptkit.report.reading import (
    domains,
    frequencies,
    levels,
    methods,
    short,
    source,
    verdict,
    words,
)
from daptkit.report.reading.training import panels, selected, unfreezing
from daptkit.run import RunFolder, atomic_write, writing

_PARTS = {
    "models": list,
    "run": dict,
    "data": dict,
    "embedding": dict,
    "divergence": dict,
    "stages": dict,
    "prior": dict,
    "predicted": dict,
    "collapse": dict,
    "notes": list,
    "method_reports": dict,
    "training": dict,
    "source_validation": dict,
    "source_validation_by_site": dict,
    "calibration": dict,
}

LARGEST_MATRIX = 12
"""Classes up to which the confusion matrix is shown."""


def write_page(folder: RunFolder) -> Path:
    """Write report.html and figures/ of a run from its report.json and embedding.csv.

    Figures of an earlier page that this one does not have are removed.

    Args:
        folder: the run folder.

    Returns:
        The path of report.html.

    Raises:
        DaptkitError: report.json or embedding.csv is missing, damaged or of another version, or the
            page cannot be written.
    """
    report = read_report(folder)
    points = read_points(folder.embedding, _advice(folder))
    try:
        if not _complete(report, points):
            raise DaptkitError(
                f"'{folder.embedding}' does not hold the points of this report. {_advice(folder)}"
            )
        html, plots = render(report, points)
    except (jinja2.UndefinedError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise DaptkitError(
            f"'{folder.report_data}' lacks part of a report ({type(error).__name__}: {error})."
            f" {_advice(folder)}"
        ) from error
    _write_figures(folder.figures, plots)
    atomic_write(folder.report, html)
    return folder.report


def _complete(report: words.Report, points: Mapping[tuple[str, str], Points]) -> bool:
    """Say whether every model and domain has as many points as the report says are shown."""
    shown = {(m, d): n for m in report["models"] for d, n in report["embedding"]["shown"].items()}
    return shown == {place: len(part.x) for place, part in points.items()}


def read_report(folder: RunFolder) -> dict[str, Any]:
    """Read report.json of a run.

    Raises:
        DaptkitError: it is missing, damaged or of another version.
    """
    path, advice = folder.report_data, _advice(folder)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DaptkitError(f"cannot read '{path}': {error.strerror}. {advice}") from error
    except ValueError as error:
        raise DaptkitError(f"'{path}' is not JSON. {advice}") from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise DaptkitError(f"'{path}' was not written by this version of daptkit. {advice}")
    bad = [key for key, kind in _PARTS.items() if not isinstance(report.get(key), kind)]
    if bad:
        raise DaptkitError(f"'{path}' is damaged at '{bad[0]}'. {advice}")
    return report


def _advice(folder: RunFolder) -> str:
    return f"Measure again with 'daptkit report {folder.root} --remeasure'."


def render(
    report: words.Report, points: Mapping[tuple[str, str], Points]
) -> tuple[str, list[Plot]]:
    """Return the page and its plots.

    Args:
        report: content of report.json.
        points: of embedding.csv, by model and domain.
    """
    series = panels(report)
    plots = draw(report, points, series)
    html = (
        environment()
        .get_template("page.html")
        .render(
            report=report,
            run=report["run"],
            data=report["data"],
            models=report["models"],
            verdict=report.get("verdict"),
            adapted=words.is_adapted(report),
            last=words.last(report),
            plots=plots,
            panels=list(zip(series, plots["training"], strict=True)),
            read=_readings(report),
            largest_matrix=LARGEST_MATRIX,
        )
    )
    return html, [plot for section in plots.values() for plot in section]


def _readings(report: words.Report) -> dict[str, Any]:
    stages = report["stages"]
    return {
        "title": short.title(report),
        "short": short.in_short(report),
        **_verdict(report),
        "images": _images(report),
        "measures": domains.measures(report),
        "agreement": domains.agreement(report),
        "basis": domains.basis(report),
        "stages": domains.stage_sentences(report) if stages["layers"] else [],
        "estimate": frequencies.estimate(report),
        "most_moved": frequencies.most_moved(report),
        "predictions": frequencies.predictions(report),
        "method_reports": methods.method_reports(report),
        "unfreezing": unfreezing(report),
        "selected": selected(report),
        "task_kept": source.task_kept(report),
        "forgotten": source.forgotten(report),
        "from_scratch": source.from_scratch(report),
        "sampling": source.sampling(report),
        "calibration": {m: source.calibration(report, m) for m in report["calibration"]},
        "calibration_choice": [source.calibration_choice(report, m) for m in report["calibration"]],
        "calibration_basis": source.calibration_basis(report),
    }


def _images(report: words.Report) -> dict[str, Any] | None:
    if not report.get("images"):
        return None
    return {
        "did": levels.what_it_did(report),
        "views": levels.view_names(report),
        "channels": levels.channels(report),
    }


def _verdict(report: words.Report) -> dict[str, Any]:
    if report.get("verdict") is None:
        return {"verdict": ""}
    return {
        "verdict": verdict.answer(report),
        "reasons": verdict.reasons(report),
        "shift": verdict.shift(report),
        "estimates": verdict.estimates(report),
        "estimated": verdict.estimated_models(report),
    }


def environment() -> jinja2.Environment:
    """Return the templates of the pages, with the filters that write numbers."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for write in (
        words.number,
        words.decimals,
        words.count,
        words.percent,
        words.significant,
        words.between,
        words.listing,
        words.plain,
    ):
        environment.filters[write.__name__] = write
    environment.filters["data_uri"] = _data_uri
    environment.filters["interval_sentence"] = source.interval_sentence
    environment.globals["LONG"] = words.LONG
    environment.globals["RELIABILITY"] = words.RELIABILITY
    return environment


def _data_uri(plot: Plot) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(plot.svg).decode('ascii')}"


def _write_figures(folder: Path, plots: list[Plot]) -> None:
    for plot in plots:
        atomic_write(folder / f"{plot.name}.svg", plot.svg)
    kept = {f"{plot.name}.svg" for plot in plots}
    with writing(folder):
        for old in folder.glob("*.svg"):
            if old.name not in kept:
                old.unlink(missing_ok=True)
