"""Where the images of both sites lie: colour is the domain, shape the class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from daptkit.report.figures.points import Points
from daptkit.report.figures.style import SOURCE, TARGET, WIDTH, Plot, new_figure, to_svg
from daptkit.report.reading.words import LONG, Report, clip, count, is_adapted

MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
OTHER = "."
COLOURS = {"source": SOURCE, "target": TARGET}
ROUNDS = 4
"""Parts that the points are drawn in, so that no domain lies wholly on top of the other."""


def embedding_plots(report: Report, points: Mapping[tuple[str, str], Points]) -> list[Plot]:
    """Draw one panel a model; the same shape means the same class in all of them."""
    shapes = class_shapes(report["data"]["classes"], points)
    return [
        _panel(
            report, model, shapes, {d: points[model, d] for d in COLOURS if (model, d) in points}
        )
        for model in report["models"]
        if any(m == model for m, _ in points)
    ]


def class_shapes(classes: list[str], points: Mapping[tuple[str, str], Points]) -> dict[str, str]:
    """Give the most frequent classes a shape each, and all others a dot."""
    seen = Counter(name for part in points.values() for name in part.classes)
    frequent = sorted(classes, key=lambda name: -seen[name])[: len(MARKERS)]
    kept = [name for name in classes if name in frequent]
    shapes = dict(zip(kept, MARKERS, strict=False))
    return {name: shapes.get(name, OTHER) for name in classes}


def _panel(report: Report, model: str, shapes: dict[str, str], parts: dict[str, Points]) -> Plot:
    handles = _legend(shapes)
    rows = (len(handles) + 1) // 2
    figure = new_figure(WIDTH * 0.9 + 0.2 * rows)
    axes = figure.add_subplot()
    axes.set_rasterization_zorder(1.5)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#cccccc")
    _scatter(axes, shapes, parts)
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=2,
        handletextpad=0.3,
        columnspacing=1.2,
        borderpad=0.5,
        labelspacing=0.3,
    )
    moment = {"source-only": "Before: ", "adapted": "After: "}[model] if is_adapted(report) else ""
    shown = report["embedding"]["shown"]
    return Plot(
        name=f"embedding-{model}",
        svg=to_svg(figure),
        title=f"{moment}{LONG[model]}" if moment else LONG[model].capitalize(),
        alt=(
            f"Scatter plot of {count(shown['source'])} source images in blue and"
            f" {count(shown['target'])} target images in vermillion, laid out by the features of"
            f" the {LONG[model]}; the shape of a point is its class."
        ),
    )


def _scatter(axes: Axes, shapes: dict[str, str], parts: dict[str, Points]) -> None:
    order = np.random.default_rng(0)
    rounds = {d: order.integers(ROUNDS, size=len(p.x)) for d, p in parts.items()}
    total = sum(len(p.x) for p in parts.values())
    size = float(np.clip(40_000 / max(total, 1), 9, 34))
    for now in range(ROUNDS):
        for domain, part in parts.items():
            x, y = np.array(part.x), np.array(part.y)
            marker = np.array([shapes.get(name, OTHER) for name in part.classes])
            for shape in (*MARKERS, OTHER):
                chosen = (rounds[domain] == now) & (marker == shape)
                if chosen.any():
                    axes.scatter(
                        x[chosen],
                        y[chosen],
                        s=size,
                        marker=shape,
                        color=COLOURS[domain],
                        alpha=0.55,
                        linewidths=0,
                        zorder=1,
                    )


def _legend(shapes: dict[str, str]) -> list[Line2D]:
    domains = (("source, class as labelled", SOURCE), ("target, class as predicted", TARGET))
    entries = [_entry(label, MARKERS[0], colour) for label, colour in domains]
    named = {name: shape for name, shape in shapes.items() if shape != OTHER}
    entries += [_entry(clip(name, 25), shape, "#666666") for name, shape in named.items()]
    if len(named) < len(shapes):
        entries.append(_entry(f"{len(shapes) - len(named)} rarer classes", OTHER, "#666666"))
    # A legend of two columns is filled column by column; this reads it row by row.
    return [*entries[0::2], *entries[1::2]]


def _entry(label: str, marker: str, colour: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6, label=label)
