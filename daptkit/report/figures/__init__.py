"""The plots of the report, drawn from report.json and embedding.csv alone."""

from __future__ import annotations

from collections.abc import Mapping

from daptkit.report.figures.embedding import embedding_plots
from daptkit.report.figures.frequencies import frequency_plots
from daptkit.report.figures.levels import level_plots
from daptkit.report.figures.points import Points, read_points
from daptkit.report.figures.reliability import reliability_plots
from daptkit.report.figures.stages import stage_plots
from daptkit.report.figures.style import Plot, house_style
from daptkit.report.figures.training import training_plots
from daptkit.report.reading.training import Panel
from daptkit.report.reading.words import Report

__all__ = ["Plot", "Points", "draw", "read_points"]


def draw(
    report: Report, points: Mapping[tuple[str, str], Points], panels: list[Panel]
) -> dict[str, list[Plot]]:
    """Draw every plot.

    Args:
        report: content of report.json.
        points: of embedding.csv, by model and domain.
        panels: series of training.

    Returns:
        Plots by section: ``embedding``, ``images``, ``stages``, ``frequencies``, ``training`` (one
        a panel) and ``reliability``.
    """
    with house_style():
        return {
            "embedding": embedding_plots(report, points),
            "images": level_plots(report),
            "stages": stage_plots(report),
            "frequencies": frequency_plots(report),
            "training": training_plots(panels),
            "reliability": reliability_plots(report),
        }
