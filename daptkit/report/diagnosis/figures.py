"""Figures of a diagnosis: what looks different, class frequencies, stages of the backbone."""

from __future__ import annotations

from daptkit.report.diagnosis import words
from daptkit.report.diagnosis.words import Found
from daptkit.report.figures.frequencies import frequency_plots
from daptkit.report.figures.stages import stage_plots
from daptkit.report.figures.style import (
    AFTER,
    BEFORE,
    Plot,
    house_style,
    light_grid,
    new_figure,
    to_svg,
)
from daptkit.report.reading.words import clip

_MODEL = "source-only"
_MOST = 14


def diagnosis_plots(found: Found) -> dict[str, list[Plot]]:
    """Return the plots by section: ``appearance``, ``frequencies`` and ``stages``."""
    report = _as_report(found)
    with house_style():
        return {
            "appearance": _appearance(found),
            "frequencies": frequency_plots(report),
            "stages": stage_plots(report),
        }


def _as_report(found: Found) -> Found:
    """Return what the plots of a run's report read, of one model."""
    stages, diagnosis = found["stages"], found["diagnosis"]
    estimate = diagnosis["target_prior"] or {"estimate": None, "low": None, "high": None}
    return {
        "models": [_MODEL],
        "data": {"classes": found["data"]["classes"]},
        "prior": {
            "source": diagnosis["source_prior"],
            "predicted_twin": found["predicted"],
            "predicted": None,
            "target": estimate["estimate"],
            "target_low": estimate["low"],
            "target_high": estimate["high"],
        },
        "stages": {
            "layers": stages["layers"],
            "proxy_a_distance": {_MODEL: stages["proxy_a_distance"]},
            "mmd2": {_MODEL: stages["mmd2"]},
        },
    }


def _appearance(found: Found) -> list[Plot]:
    """Draw Cliff's delta of each statistic with its interval, the largest on top."""
    alpha = found["diagnosis"]["alpha"]
    rows = [
        d
        for d in found["diagnosis"]["appearance"]
        if d["kind"] == "number" and None not in (d["effect"], d["low"], d["high"])
    ][:_MOST]
    if not rows:
        return []
    figure = new_figure(0.9 + 0.3 * len(rows))
    axes = figure.add_subplot()
    light_grid(axes, "x")
    axes.axvline(0, color="#777777", linewidth=0.7)
    for place, row in enumerate(rows):
        differs = row["p_adjusted"] is not None and row["p_adjusted"] <= alpha
        colour = AFTER if differs else BEFORE
        axes.hlines(place, row["low"], row["high"], color=colour, linewidth=2)
        axes.plot(row["effect"], place, marker="o", markersize=5.5, color=colour)
    axes.set_yticks(range(len(rows)), [clip(words.statistic(row["name"]), 26) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-1.05, 1.05)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
    axes.set_xlabel("lower at the target  –  Cliff's delta  –  higher")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return [
        Plot(
            name="appearance",
            svg=to_svg(figure),
            title="What looks different",
            alt="Dot plot of the effect size of each image statistic with its interval; the table"
            " below it gives the same numbers.",
        )
    ]
