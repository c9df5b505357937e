"""Class frequencies at the source, as predicted on the target, and as estimated there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from daptkit.report.figures.style import (
    AFTER,
    BEFORE,
    SOURCE,
    TARGET,
    Plot,
    light_grid,
    new_figure,
    share_ticks,
    to_svg,
)
from daptkit.report.reading.words import Report, clip, is_adapted

Shares = Mapping[str, float]


def frequency_plots(report: Report) -> list[Plot]:
    """Draw one row a class, in the order of the classes."""
    classes = report["data"]["classes"]
    prior = report["prior"]
    figure = new_figure(1.0 + 0.36 * len(classes))
    axes = figure.add_subplot()
    light_grid(axes, "x")
    rows = range(len(classes))
    axes.hlines(rows, 0, 1, color="#eeeeee", linewidth=0.6, zorder=0.5)
    _dots(axes, classes, prior["source"], "source labels", SOURCE, "o", 0.0)
    before = "predicted before" if is_adapted(report) else "predicted on target"
    _dots(axes, classes, prior["predicted_twin"], before, BEFORE, "s", 0.0)
    _dots(axes, classes, prior["predicted"], "predicted after", AFTER, "s", 0.0)
    _estimate(axes, classes, prior)
    axes.set_yticks(rows, [clip(name, 24) for name in classes])
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xlim(0, min(1.0, 1.08 * _largest(prior)))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    share_ticks(axes.xaxis)
    figure.legend(
        loc="outside upper left", ncols=2, borderpad=0.4, handletextpad=0.3, labelspacing=0.3
    )
    return [
        Plot(
            name="class-frequencies",
            svg=to_svg(figure),
            title="Class frequencies",
            alt=f"Dot plot of the share of each of {len(classes)} classes at the source and at the"
            " target; the table beside it gives the same numbers.",
        )
    ]


def _dots(
    axes: Axes,
    classes: Sequence[str],
    shares: Shares | None,
    label: str,
    colour: str,
    marker: str,
    offset: float,
) -> None:
    if shares is None:
        return
    hollow = marker == "o"
    axes.plot(
        [shares.get(name, float("nan")) for name in classes],
        [row + offset for row in range(len(classes))],
        linestyle="",
        marker=marker,
        markersize=8 if hollow else 5.5,
        markerfacecolor="none" if hollow else colour,
        markeredgecolor=colour,
        markeredgewidth=1.8 if hollow else 0,
        label=label,
        clip_on=False,
        zorder=3,
    )


def _estimate(axes: Axes, classes: Sequence[str], prior: Mapping[str, Shares | None]) -> None:
    target, low, high = prior["target"], prior["target_low"], prior["target_high"]
    if target is None:
        return
    # Below the other marks of its row, so that the interval is not hidden by them.
    known = low is not None and high is not None
    label = "target estimate, 95% interval" if known else "target estimate"
    _dots(axes, classes, target, label, TARGET, "D", 0.27)
    if low is not None and high is not None:
        axes.hlines(
            [row + 0.27 for row in range(len(classes))],
            [low[name] for name in classes],
            [high[name] for name in classes],
            color=TARGET,
            linewidth=2,
            zorder=2,
        )


def _largest(prior: Mapping[str, Shares | None]) -> float:
    return max(v for shares in prior.values() if shares for v in shares.values() if v is not None)
