"""Area under the ROC curve for many weightings of the same images at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def weighted_auroc(
    scores: Floats, positive: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64]
) -> Floats:
    r"""Return the area under the ROC curve of each weighting; a tie counts one half.

    .. math:: \frac{\sum_{i \in +} \sum_{j \in -} w_i w_j
        (1[s_i > s_j] + \tfrac12 1[s_i = s_j])}{\sum_{i \in +} w_i \sum_{j \in -} w_j}

    The images are sorted once; each weighting then costs O(N).

    Args:
        scores: (N,) higher for the positive class.
        positive: (N,) which images are of the positive class.
        weights: (N, B) weight of each image in each of B weightings, >= 0.

    Returns:
        (B,) areas in [0, 1]; NaN where positives or negatives weigh nothing.

    Reference: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    negatives = np.flatnonzero(~positive)
    negatives = negatives[np.argsort(scores[negatives], kind="stable")]
    mass = np.zeros((len(negatives) + 1, weights.shape[1]))  # (N- + 1, B)
    np.cumsum(weights[negatives], axis=0, out=mass[1:])
    below = np.searchsorted(scores[negatives], scores[positive], side="left")
    not_above = np.searchsorted(scores[negatives], scores[positive], side="right")
    of_positives = weights[positive]  # (N+, B)
    wins = 0.5 * np.einsum("ib,ib->b", of_positives, mass[below])
    wins += 0.5 * np.einsum("ib,ib->b", of_positives, mass[not_above])
    pairs = of_positives.sum(axis=0) * mass[-1]
    area: Floats = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return area
