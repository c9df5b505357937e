"""Nuclear norm of the target's predictions."""

from __future__ import annotations

import numpy as np

from daptkit.assess.scores.inputs import ScoreInputs


def batch_nuclear_norm(inputs: ScoreInputs) -> float:
    """Return |P|_* / sqrt(M K), P the (M, K) posteriors of the target, in [0, 1]; higher is better.

    1 for sure predictions of equally frequent classes, so that it prefers a wrong even split over a
    right uneven one. The published loss divides by M alone, which leaves the order as it is.

    Reference: Cui et al. 2020, arXiv:2003.12237.
    """
    p = inputs.target_posterior
    norm = float(np.linalg.svd(p, compute_uv=False).sum())
    return norm / float(np.sqrt(p.shape[0] * p.shape[1]))
