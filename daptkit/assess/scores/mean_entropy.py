"""Mean entropy of the target's predictions."""

from __future__ import annotations

from daptkit.assess.accuracy.atc import negative_entropy
from daptkit.assess.scores.inputs import ScoreInputs


def mean_entropy(inputs: ScoreInputs) -> float:
    """Return -mean_i sum_k p_ik log p_ik of the target, in nats, in [0, log K]; lower is better.

    Fooled by a model that is sure of one class for every image, and by over-confidence.

    Reference: Morerio, Cavazza, Murino 2018, arXiv:1711.10288 (selection by target entropy).
    """
    return float(-negative_entropy(inputs.target_posterior).mean())
