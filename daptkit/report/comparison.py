"""compare.html: made of the content of compare.json, and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daptkit.report.figures.comparison import estimates_plot, gains_plot
from daptkit.report.page import environment
from daptkit.report.reading import comparing


def comparison_page(data: Mapping[str, Any]) -> str:
    """Return the self-contained page of a comparison.

    Args:
        data: content of ``compare.json``.
    """
    gained = data["audit"] is not None and any(
        one["difference"] for one in data["audit"]["cells"].values()
    )
    template = environment().get_template("compare.html")
    return template.render(
        data=data,
        estimates=estimates_plot(data) if any(c["values"] for c in data["cells"]) else None,
        gains=gains_plot(data) if gained else None,
        read=comparing,
        columns=comparing.estimate_columns(data),
        score_names=comparing.score_columns(data),
    )
