"""The plots of a comparison, drawn from compare.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from daptkit.report.figures.style import (
    AFTER,
    Plot,
    house_style,
    light_grid,
    new_figure,
    share_ticks,
    to_svg,
)
from daptkit.report.reading.comparing import ESTIMATES, cells, method_name, rows, runs_of
from daptkit.report.reading.words import clip

Data = Mapping[str, Any]

_LOOKS = {
    "atc": ("#009E73", "o"),
    "atc_entropy": ("#56B4E9", "s"),
    "doc": ("#CC79A7", "D"),
    "prior_weighted_recall": ("#E69F00", "^"),
    "gde": ("#555555", "v"),
    "aline": ("#111111", "P"),
}
"""Colour and marker of each estimate; blue and vermillion are those of the sites."""

_HEIGHT = 0.62
"""Inches of a method's row."""


def estimates_plot(data: Data) -> Plot:
    """Draw the estimated accuracies of every method: a small mark a run, a large one the mean."""
    names = [n for n in ESTIMATES if any(f"estimate_{n}" in c["values"] for c in cells(data))]
    with house_style():
        figure = new_figure(1.3 + _HEIGHT * len(rows(data)))
        axes = figure.add_subplot()
        light_grid(axes, "x")
        step = 0.7 / max(len(names), 1)
        for number, name in enumerate(names):
            offset = (number - (len(names) - 1) / 2) * step
            _draw_estimate(axes, data, name, offset)
        _rows(axes, rows(data))
        share_ticks(axes.xaxis)
        figure.legend(
            loc="outside upper left", ncols=2, borderpad=0.4, handletextpad=0.3, labelspacing=0.3
        )
        svg = to_svg(figure)
    return Plot(
        name="estimates",
        svg=svg,
        title="Estimated accuracy at the target",
        alt=f"Dot plot of {len(names)} estimates of accuracy for each of {len(rows(data))}"
        " methods; the table beside it gives the same numbers.",
    )


def gains_plot(data: Data) -> Plot:
    """Draw what each run truly gained over the source-only model of its seed, with intervals."""
    methods = [m for m in rows(data) if m != "none"]
    with house_style():
        figure = new_figure(0.9 + _HEIGHT * len(methods))
        axes = figure.add_subplot()
        light_grid(axes, "x")
        axes.axvline(0.0, color="#777777", linewidth=0.9)
        for row, method in enumerate(methods):
            runs = runs_of(data, method)
            for number, cell in enumerate(runs):
                offset = (number - (len(runs) - 1) / 2) * 0.6 / max(len(runs), 1)
                _draw_gain(axes, data["audit"]["cells"].get(cell["name"]), row + offset)
        _rows(axes, methods)
        share_ticks(axes.xaxis)
        svg = to_svg(figure)
    return Plot(
        name="gains",
        svg=svg,
        title="Balanced accuracy minus that of source-only, each run with its 95% interval",
        alt="Plot of differences with intervals; the table below gives the same numbers.",
    )


def _draw_estimate(axes: Axes, data: Data, name: str, offset: float) -> None:
    colour, marker = _LOOKS[name]
    label: str | None = ESTIMATES[name]
    for row, method in enumerate(rows(data)):
        runs = [
            value
            for cell in runs_of(data, method)
            if (value := cell["values"].get(f"estimate_{name}")) is not None
        ]
        if not runs:
            continue
        style: dict[str, Any] = {
            "linestyle": "",
            "marker": marker,
            "markerfacecolor": colour,
            "markeredgewidth": 0,
            "clip_on": False,
        }
        axes.plot(runs, [row + offset] * len(runs), markersize=3, alpha=0.6, **style)
        axes.plot([sum(runs) / len(runs)], [row + offset], markersize=7, label=label, **style)
        label = None


def _draw_gain(axes: Axes, one: Data | None, row: float) -> None:
    gained = None if one is None or one["difference"] is None else one["difference"]
    if gained is None:
        return
    found = gained["balanced_accuracy"]
    if found["low"] is not None and found["high"] is not None:
        axes.hlines(row, found["low"], found["high"], color=AFTER, linewidth=1.6)
    axes.plot([found["value"]], [row], marker="o", markersize=5, color=AFTER, linestyle="")


def _rows(axes: Axes, methods: Sequence[str]) -> None:
    axes.set_yticks(range(len(methods)), [clip(method_name(m), 28) for m in methods])
    axes.set_ylim(len(methods) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
