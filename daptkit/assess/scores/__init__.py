"""Scores of a candidate that need no target labels, and a choice that they cannot fool alone."""

from __future__ import annotations

from daptkit.assess.scores.combine import SCORES, Selection, score_weights, select, veto
from daptkit.assess.scores.inputs import ScoreInputs, score_inputs
from daptkit.plugin import ScoreSpec

_SUMMARIES = {
    "im": "Information maximisation: sure predictions of the expected mixture of classes.",
    "entropy": "Mean entropy of the target's predictions.",
    "snd": "Soft neighbourhood density of the target's predictions.",
    "bnm": "Nuclear norm of the target's predictions.",
    "iwcv": "Error on held-out source images, weighted by how target-like they are.",
    "atc": "Share of the target above the source's confidence threshold.",
}

SPECS = tuple(
    ScoreSpec(
        name=name,
        factory=f"{function.__module__}:{function.__name__}",
        higher_is_better=higher,
        summary=_SUMMARIES[name],
    )
    for name, (function, higher) in SCORES.items()
)
"""Specifications of the scores that come with daptkit."""

__all__ = [
    "SCORES",
    "SPECS",
    "ScoreInputs",
    "Selection",
    "score_inputs",
    "score_weights",
    "select",
    "veto",
]
