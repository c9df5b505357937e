"""Reliability diagrams: how often a prediction is right against how sure the model was.

Guo et al. 2017, arXiv:1706.04599.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from daptkit.report.figures.style import (
    AFTER,
    BEFORE,
    WIDTH,
    Plot,
    light_grid,
    new_figure,
    share_ticks,
    to_svg,
)
from daptkit.report.reading.source import calibration
from daptkit.report.reading.words import LONG, Report

CURVES = (("uncalibrated", BEFORE, "s"), ("calibrated", AFTER, "o"))


def reliability_plots(report: Report) -> list[Plot]:
    """Draw one diagram a model, the number of images in each bin below it."""
    return [_plot(report, model) for model in report["models"] if model in report["calibration"]]


def _plot(report: Report, model: str) -> Plot:
    curves = report["calibration"][model]
    figure = new_figure(WIDTH)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    top.plot([0, 1], [0, 1], color="#aaaaaa", linewidth=0.9, linestyle=(0, (4, 3)))
    light_grid(top)
    for name, colour, marker in CURVES:
        bins = curves[name]["bins"]
        top.plot(
            [b["confidence"] for b in bins],
            [b["accuracy"] for b in bins],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            label=name,
        )
    _counts(bottom, curves)
    top.set_ylim(-0.02, 1.02)
    top.set_xlim(min(0.5, _lowest(curves)) - 0.02, 1.02)
    top.set_ylabel("share that is right")
    bottom.set_xlabel("probability of the predicted class")
    share_ticks(top.yaxis)
    share_ticks(top.xaxis)
    top.legend(loc="upper left", borderpad=0.1)
    return Plot(
        name=f"reliability-{model}",
        svg=to_svg(figure),
        title=LONG[model].capitalize(),
        alt=f"Reliability diagram of the {LONG[model]}. {calibration(report, model)}",
    )


def _counts(axes: Axes, curves: dict[str, Any]) -> None:
    for (name, colour, _), side in zip(CURVES, (0, 1), strict=True):
        bins = curves[name]["bins"]
        half = [(b["high"] - b["low"]) / 2 for b in bins]
        axes.bar(
            [b["low"] + side * h + 0.05 * h for b, h in zip(bins, half, strict=True)],
            [b["n"] for b in bins],
            width=[0.9 * h for h in half],
            align="edge",
            color=colour,
        )
    axes.set_ylabel("images")
    axes.locator_params(axis="y", nbins=2)


def _lowest(curves: dict[str, Any]) -> float:
    return min((b["low"] for name, _, _ in CURVES for b in curves[name]["bins"]), default=0.0)
