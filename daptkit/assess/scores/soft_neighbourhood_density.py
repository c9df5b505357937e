"""Soft neighbourhood density: predictions that lie in dense clusters."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

from daptkit.assess.scores.inputs import ScoreInputs
from daptkit.shift.divergence import subsample

TEMPERATURE = 0.05
LIMIT = 2000
"""Target images at most; time and memory grow with their square."""


def soft_neighbourhood_density(inputs: ScoreInputs) -> float:
    """Return the mean entropy of each target image's similarities to the others; higher is better.

    mean_i H(softmax_j(<u_i, u_j> / 0.05, j != i)), u the posteriors scaled to length 1, in nats, in
    [0, log(M - 1)], of at most 2000 images. A model that collapsed to one class has the highest
    value there is, so it is never to be used without a check for that. NaN for fewer than 2 images.

    Reference: Saito et al. 2021, arXiv:2108.10860.
    """
    rng = np.random.default_rng(inputs.seed)
    p = inputs.target_posterior[subsample(len(inputs.target_posterior), LIMIT, rng)]
    if len(p) < 2:
        return float("nan")
    unit = p / np.linalg.norm(p, axis=1, keepdims=True)
    similarity = unit @ unit.T / TEMPERATURE  # (M, M)
    np.fill_diagonal(similarity, -1e30)  # an image is no neighbour of its own
    log_share = log_softmax(similarity, axis=1)
    return float(-(np.exp(log_share) * log_share).sum(axis=1).mean())
