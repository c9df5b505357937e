"""Estimates of accuracy on the target without its labels."""

from __future__ import annotations

from daptkit.assess.accuracy.estimates import AccuracyEstimate, estimate_accuracy
from daptkit.assess.accuracy.sample import Sample, sample_of, sample_under_rule

__all__ = [
    "AccuracyEstimate",
    "Sample",
    "estimate_accuracy",
    "sample_of",
    "sample_under_rule",
]
