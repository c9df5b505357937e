"""Importance weights of classes from source and target priors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from daptkit.shift.arrays import FloatArray, as_prior

WEIGHT_FLOOR = 1e-3
PRIOR_FLOOR = 1e-6


def importance_weights(
    target_prior: npt.ArrayLike,
    source_prior: npt.ArrayLike,
    *,
    shrink: float = 0.0,
    max_weight: float = 10.0,
) -> FloatArray:
    """Return class weights w = q / p, shrunk, capped and scaled to mean 1 under p, (K,).

    v = 1 + (1 - shrink) (q / p - 1), at least 0.001; w = min(c v, max_weight), c solving
    sum_k p_k w_k = 1. A class that the source lacks gets weight 1, since no image carries it.

    Args:
        target_prior: q, (K,).
        source_prior: p, (K,), *unweighted* class frequencies of the source training images.
        shrink: in [0, 1]; 1 gives ones.
        max_weight: cap, at least 1.

    Reference: Azizzadenesheli et al. 2019, arXiv:1903.09734 (shrinkage).

    Raises:
        DataError: priors of wrong shape, negative or not finite.
    """
    q = np.asarray(target_prior, dtype=np.float64)
    p = as_prior(source_prior, len(q), "source prior")
    q = as_prior(q, len(q), "target prior")
    present = p > PRIOR_FLOOR
    ratio = np.where(present, q / np.where(present, p, 1.0), 1.0)
    raw = np.maximum(1.0 + (1.0 - shrink) * (ratio - 1.0), WEIGHT_FLOOR)

    def surplus(log_scale: float) -> float:
        return float(p @ np.minimum(np.exp(log_scale) * raw, max_weight)) - 1.0

    scale = np.exp(brentq(surplus, -50.0, 50.0, xtol=1e-13)) if max_weight > 1.0 else 0.0
    w = np.minimum(scale * raw, max_weight) if max_weight > 1.0 else np.ones(len(q))
    return np.where(present, w, 1.0)
