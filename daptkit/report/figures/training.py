"""Losses, rates and accuracies over the run, one small figure a series."""

from __future__ import annotations

import re

from daptkit.report.figures.style import (
    MODEL_COLOURS,
    SMALL_WIDTH,
    Plot,
    light_grid,
    new_figure,
    share_ticks,
    to_svg,
)
from daptkit.report.reading.training import Panel
from daptkit.report.reading.words import LONG

FEW = 12
"""Values up to which each is marked by a dot."""


def training_plots(panels: list[Panel]) -> list[Plot]:
    """Draw every panel, the source-only model in grey behind the adapted one."""
    return [_plot(i, panel) for i, panel in enumerate(panels, 1)]


def _plot(number: int, panel: Panel) -> Plot:
    figure = new_figure(1.85, SMALL_WIDTH)
    axes = figure.add_subplot()
    light_grid(axes)
    if panel.chance is not None:
        axes.axhline(panel.chance, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)))
    for model, (steps, values) in panel.lines.items():
        axes.plot(
            list(steps),
            [float("nan") if v is None else v for v in values],
            color=MODEL_COLOURS[model],
            linewidth=1.5,
            marker="o" if len(values) <= FEW else None,
            markersize=4,
        )
        for step in panel.marks[model]:
            axes.axvline(step, color=MODEL_COLOURS[model], linewidth=0.9, linestyle=(0, (1, 2)))
    if panel.selected is not None:
        axes.axvline(panel.selected, color=MODEL_COLOURS["adapted"], linewidth=1.1)
    if panel.is_share:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))
        share_ticks(axes.yaxis)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=4)
    axes.set_xlabel("optimiser step")
    slug = re.sub(r"[^A-Za-z0-9]+", "-", panel.key).strip("-")
    models = " and ".join(LONG[model] for model in panel.lines)
    return Plot(
        name=f"training-{number:02d}-{slug}",
        svg=to_svg(figure),
        title=panel.title,
        alt=f"{panel.title} over the optimiser steps, {models}. {panel.reading}",
    )
