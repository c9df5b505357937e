"""compare.html: made of the content of compare.json, and of nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daptkit.report.page import page_environment
from daptkit.report.reading import comparing


def comparison_page(data: Mapping[str, Any]) -> str:
    """Return the self-contained page of a comparison.

    Args:
        data: content of ``compare.json``.
    """
    template = page_environment().get_template("compare.html")
    return template.render(data=data, read=comparing)
