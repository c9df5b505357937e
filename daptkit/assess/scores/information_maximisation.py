"""Information maximisation: sure of each image, and of the right mixture of classes."""

from __future__ import annotations

import numpy as np

from daptkit.assess.accuracy.atc import negative_entropy
from daptkit.assess.scores.inputs import ScoreInputs

PRIOR_FLOOR = 1e-6


def information_maximisation(inputs: ScoreInputs) -> float:
    """Return -KL(mean p | q) - mean H(p) of the target, in nats; higher is better.

    Without ``target_prior`` q is uniform, which is the published H(mean p) - mean H(p) less log K:
    it then prefers a wrong even split over a right uneven one. A trusted prior mends that.

    Reference: Krause, Perona, Gomes 2010, "Discriminative clustering by regularized information
    maximization"; Liang et al. 2020, arXiv:2002.08546.
    """
    k = inputs.num_classes
    q = np.full(k, 1.0 / k) if inputs.target_prior is None else inputs.target_prior
    mean = inputs.target_posterior.mean(axis=0)
    diversity = mean * (np.log(np.maximum(mean, 1e-300)) - np.log(np.maximum(q, PRIOR_FLOOR)))
    return float(negative_entropy(inputs.target_posterior).mean() - diversity.sum())
