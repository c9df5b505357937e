"""Difference of confidences: accuracy falls as much as confidence does."""

from __future__ import annotations

from daptkit.shift.arrays import FloatArray


def doc_accuracy(
    source_confidence: FloatArray,
    right: FloatArray,
    target_confidence: FloatArray,
    source_weights: FloatArray,
    target_weights: FloatArray,
) -> float:
    """Return acc_s - (mean conf_s - mean conf_t), cut to [0, 1].

    Args:
        source_confidence: (N,) largest probability of each held-out source image.
        right: (N,) 1 where the model is right, else 0.
        target_confidence: (M,).
        source_weights: (N,) such as bootstrap counts, not all zero.
        target_weights: (M,) likewise.

    Reference: Guillory et al. 2021, arXiv:2107.03315.
    """
    n, m = source_weights.sum(), target_weights.sum()
    accuracy = float(source_weights @ right / n)
    lost = float(source_weights @ source_confidence / n - target_weights @ target_confidence / m)
    return min(max(accuracy - lost, 0.0), 1.0)
