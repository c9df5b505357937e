"""The plotted points of a report as one picture, since TensorBoard shows no SVG."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"source": "#4477aa", "target": "#ee7733"}


def embedding_image(table: Path) -> npt.NDArray[np.uint8] | None:
    """Return one panel for each model with the images of both sites, (H, W, 3).

    Args:
        table: ``embedding.csv`` of a run: model, domain, x and y of each point, among others.

    Returns:
        ``None`` where the table has no point.
    """
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            domains = panels.setdefault(row["model"], {})
            domains.setdefault(row["domain"], []).append((float(row["x"]), float(row["y"])))
    if not panels:
        return None
    figure = Figure(figsize=(4.0 * len(panels), 4.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (model, domains) in zip(axes, panels.items(), strict=True):
        for domain, points in domains.items():
            x, y = zip(*points, strict=True)
            axis.scatter(x, y, s=6, alpha=0.6, color=COLOURS.get(domain), label=domain)
        axis.set(title=model, xticks=[], yticks=[])
    axes[0].legend(loc="best", fontsize="small")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    drawn = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
    return np.asarray(drawn, dtype=np.uint8)[:, :, :3].copy()
