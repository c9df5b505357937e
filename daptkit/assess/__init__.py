"""Scores of predictions: against labels, and what can be said without them."""

from __future__ import annotations

from daptkit.assess.accuracy import (
    AccuracyEstimate,
    Sample,
    estimate_accuracy,
    sample_of,
    sample_under_rule,
)
from daptkit.assess.bound import Bound, bound_panel
from daptkit.assess.evidence import VerdictLimits
from daptkit.assess.metrics import score
from daptkit.assess.paired import audit_difference, lost_balanced_accuracy
from daptkit.assess.scores import ScoreInputs, Selection, score_inputs, select
from daptkit.assess.verdict import Verdict, judge

__all__ = [
    "AccuracyEstimate",
    "Bound",
    "Sample",
    "ScoreInputs",
    "Selection",
    "Verdict",
    "VerdictLimits",
    "audit_difference",
    "bound_panel",
    "estimate_accuracy",
    "judge",
    "lost_balanced_accuracy",
    "sample_of",
    "sample_under_rule",
    "score",
    "score_inputs",
    "select",
]
