"""Divergence of the sites stage by stage through the network."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from daptkit.report.figures.style import MODEL_COLOURS, Plot, light_grid, new_figure, to_svg
from daptkit.report.reading.words import LONG, Report, clip


def stage_plots(report: Report) -> list[Plot]:
    """Draw proxy A-distance above MMD², from the first stage to the logits; nothing if unknown."""
    stages = report["stages"]
    layers = stages["layers"]
    if not layers:
        return []
    figure = new_figure(4.8)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, key, title in (
        (top, "proxy_a_distance", "proxy A-distance"),
        (bottom, "mmd2", "MMD²"),
    ):
        axes.set_title(title, loc="left", pad=9)
        light_grid(axes)
        for model in report["models"]:
            _line(axes, model, stages[key][model])
    top.set_ylim(-0.05, 2.08)
    top.set_yticks([0, 0.5, 1, 1.5, 2])
    bottom.set_ylim(bottom=min(0.0, bottom.get_ylim()[0]))
    bottom.set_xticks(range(len(layers)), [clip(name, 24) for name in layers], rotation=32)
    for label in bottom.get_xticklabels():
        label.set_horizontalalignment("right")
        label.set_rotation_mode("anchor")
    if len(report["models"]) > 1:
        figure.legend(
            *top.get_legend_handles_labels(), loc="outside upper left", ncols=2, borderpad=0.5
        )
    return [
        Plot(
            name="stages",
            svg=to_svg(figure),
            title="Divergence per stage",
            alt="Lines of proxy A-distance and MMD² between the sites at the stages "
            f"{', '.join(layers)} of the network, one line a model.",
        )
    ]


def _line(axes: Axes, model: str, values: Sequence[float | None]) -> None:
    axes.plot(
        range(len(values)),
        [float("nan") if v is None else v for v in values],
        color=MODEL_COLOURS[model],
        marker="o",
        markersize=4.5,
        linewidth=1.6,
        label=LONG[model],
    )
