"""Average thresholded confidence: how much of the target is above the source's threshold."""

from __future__ import annotations

import numpy as np

from daptkit.shift.arrays import FloatArray

LOG_FLOOR = 1e-300


def max_confidence(posterior: FloatArray) -> FloatArray:
    """Return the largest probability of each row, (N,)."""
    return np.asarray(posterior.max(axis=1), dtype=np.float64)


def negative_entropy(posterior: FloatArray) -> FloatArray:
    """Return sum_k p_k log p_k of each row, (N,), in [-log K, 0]."""
    logs = np.log(np.maximum(posterior, LOG_FLOOR))
    return np.asarray((posterior * logs).sum(axis=1), dtype=np.float64)


def atc_accuracy(
    source_scores: FloatArray,
    right: FloatArray,
    target_scores: FloatArray,
    source_weights: FloatArray,
    target_weights: FloatArray,
) -> float:
    """Return the share of the target whose confidence is above the source's threshold.

    t solves P_s(score > t) + f P_s(score = t) = P_s(right), f in [0, 1]; the estimate is
    P_t(score > t) + f P_t(score = t). Without ties it is the published one. With them (saturated
    confidences) a plain threshold jumps by the whole tie; the share f keeps the source exact.

    Args:
        source_scores: (N,) :func:`max_confidence` or :func:`negative_entropy`.
        right: (N,) 1 where the model is right, else 0.
        target_scores: (M,).
        source_weights: (N,) such as bootstrap counts, not all zero.
        target_weights: (M,) likewise.

    Returns:
        The estimate, in [0, 1].

    Reference: Garg et al. 2022, arXiv:2201.04234.
    """
    kept = source_weights > 0
    order = np.argsort(-source_scores[kept], kind="stable")
    scores = source_scores[kept][order]  # descending
    mass = source_weights[kept][order]
    reached = np.cumsum(mass)
    wanted = float(mass @ right[kept][order])
    # The level at which the mass from the top reaches that of the right ones.
    at = min(int(np.searchsorted(reached, wanted - 1e-9 * reached[-1])), len(scores) - 1)
    threshold = scores[at]
    above = float(mass[scores > threshold].sum())
    tied = float(mass[scores == threshold].sum())
    share = min(max((wanted - above) / tied, 0.0), 1.0)
    accepted = (target_scores > threshold) + share * (target_scores == threshold)
    return float(target_weights @ accepted / target_weights.sum())
