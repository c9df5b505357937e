"""Levels of the images of both sites, before and after a method changes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from daptkit.report.figures.style import (
    SOURCE,
    TARGET,
    Plot,
    light_grid,
    new_figure,
    share_ticks,
    to_svg,
)
from daptkit.report.reading.words import Report, listing

MOST_CHANNELS = 4
"""Channels that are drawn at most; the table has them all."""


def level_plots(report: Report) -> list[Plot]:
    """Draw one panel a channel; nothing where no method changes images."""
    images = report.get("images")
    if not images:
        return []
    channels = images["channels"][:MOST_CHANNELS]
    figure = new_figure(0.9 + 1.5 * len(channels))
    panels = figure.subplots(len(channels), 1, sharex=True, squeeze=False)[:, 0]
    for place, (axes, name) in enumerate(zip(panels, channels, strict=True)):
        axes.set_title(name, loc="left", pad=4)
        _panel(axes, {view: shares[place] for view, shares in images["shares"].items()})
    panels[-1].set_xlabel("level, from black to full")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, borderpad=0.4
    )
    return [
        Plot(
            name="image-levels",
            svg=to_svg(figure),
            title="Levels of the images",
            alt=f"Histograms of the {listing(channels)} levels of source images, and of target"
            " images before and after alignment; the table below gives mean, spread and distance.",
        )
    ]


def _panel(axes: Axes, views: dict[str, Any]) -> None:
    light_grid(axes)
    source = views.get("source_after", views["source"])
    edges = np.linspace(0, 1, len(source) + 1)
    seen = "source, as the model sees it" if "source_after" in views else "source"
    axes.stairs(source, edges, fill=True, color=SOURCE, alpha=0.3, label=seen)
    _line(axes, edges, views["target"], "target before", "--", 1.2)
    _line(axes, edges, views["target_after"], "target after", "-", 1.7)
    axes.set_xlim(0, 1)
    # Empty margins make one level as frequent as all others together.
    axes.set_yscale("function", functions=(_root, np.square))
    axes.set_ylim(0, 1.05 * max(max(shares) for shares in views.values()))
    axes.locator_params(axis="y", nbins=3)
    share_ticks(axes.yaxis)


def _line(
    axes: Axes, edges: Any, shares: Sequence[float], label: str, style: str, width: float
) -> None:
    axes.stairs(shares, edges, color=TARGET, linestyle=style, linewidth=width, label=label)


def _root(values: Any) -> Any:
    return np.sqrt(np.maximum(values, 0))
