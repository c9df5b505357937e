"""Reliability curves: how often predictions of a given confidence are right."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.assess.statistics import ECE_BINS, confidence_bins


def reliability_curve(posterior: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, Any]:
    r"""Return confidence against accuracy in equal-width bins of the largest probability.

    The bins are those of the expected calibration error, :math:`\sum_b \frac{n_b}{N} |acc_b -
    conf_b|`: 15, each open below and closed above.

    Args:
        posterior: (N, K) class probabilities, in [0, 1]; N at least 1.
        labels: (N,) true class indices.

    Returns:
        ``{"ece": x, "bins": [{"low", "high", "n", "confidence", "accuracy"}, ...]}``, of the bins
        that are not empty; ``confidence`` and ``accuracy`` are means over the bin's images.

    Reference: Guo et al. 2017, arXiv:1706.04599.

    Raises:
        ValueError: the arrays are empty or do not fit each other.
    """
    p = np.asarray(posterior, dtype=np.float64)
    y = np.asarray(labels, dtype=np.int64)
    if p.ndim != 2 or not len(p) or y.shape != p.shape[:1]:
        raise ValueError(f"posterior has shape {p.shape}, labels {y.shape}")
    confidence = p.max(axis=1)
    right = p.argmax(axis=1) == y
    bins = confidence_bins(confidence)
    found = [_bin(b, confidence[bins == b], right[bins == b]) for b in np.unique(bins).tolist()]
    gaps = [b["n"] * abs(b["accuracy"] - b["confidence"]) for b in found]
    return {"ece": sum(gaps) / len(p), "bins": found}


def _bin(
    number: int, confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    return {
        "low": number / ECE_BINS,
        "high": (number + 1) / ECE_BINS,
        "n": len(right),
        "confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
    }
