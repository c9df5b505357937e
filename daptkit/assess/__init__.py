"""Scores of predictions against labels, with intervals."""

from __future__ import annotations

from daptkit.assess.metrics import score

__all__ = ["score"]
