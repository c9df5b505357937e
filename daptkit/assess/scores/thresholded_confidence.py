"""Average thresholded confidence as a score."""

from __future__ import annotations

import numpy as np

from daptkit.assess.accuracy.atc import atc_accuracy, max_confidence
from daptkit.assess.scores.inputs import ScoreInputs


def thresholded_confidence(inputs: ScoreInputs) -> float:
    """Return the accuracy that ATC (max-confidence) expects on the target; higher is better.

    Fooled by methods that make the target's predictions sure, since the threshold is the source's.

    Reference: Garg et al. 2022, arXiv:2201.04234.
    """
    right = inputs.source_posterior.argmax(axis=1) == inputs.source_labels
    return atc_accuracy(
        max_confidence(inputs.source_posterior),
        right.astype(np.float64),
        max_confidence(inputs.target_posterior),
        np.ones(len(inputs.source_posterior)),
        np.ones(len(inputs.target_posterior)),
    )
