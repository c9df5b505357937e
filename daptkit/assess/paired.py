"""The difference of two models on the same images, with an interval that knows so."""

from __future__ import annotations

from typing import Any

import numpy as np

from daptkit.assess.intervals import Floats, percentile_interval, resample_counts
from daptkit.assess.statistics import Ints


def lost_balanced_accuracy(
    labels: Ints,
    before: Ints,
    after: Ints,
    *,
    groups: Ints,
    patients_known: bool,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how much balanced accuracy one model has lost against another on the same images.

    The mean over the classes present of (recall before - recall after), with a percentile bootstrap
    interval. Each resample scores both models, so that what makes an image hard for both cancels
    out (Efron 1979, doi:10.1214/aos/1176344552).

    Args:
        labels: (N,) true class indices.
        before: (N,) predictions of the one model.
        after: (N,) predictions of the other.
        groups: (N,) patient number of each image; used only if ``patients_known``.
        patients_known: whether to resample patients; otherwise images are resampled.
        n_bootstrap: number of resamples.
        seed: seed of the resampling.

    Returns:
        ``value`` in [-1, 1], above 0 where ``after`` is worse, ``low`` and ``high`` (``None`` below
        two groups), ``n`` images and ``interval``, ``"patient"`` or ``"image"``.

    Raises:
        ValueError: there is no image.
    """
    if not len(labels):
        raise ValueError("no images to compare two models on")
    unit = groups if patients_known else np.arange(len(labels))
    _, numbers = np.unique(unit, return_inverse=True)
    classes, columns = np.unique(labels, return_inverse=True)
    n_groups = int(numbers.max()) + 1
    support = np.zeros((n_groups, len(classes)))
    lost = np.zeros_like(support)
    np.add.at(support, (numbers, columns), 1.0)
    np.add.at(lost, (numbers, columns), (before == labels) * 1.0 - (after == labels))
    value = _mean_rate(lost.sum(axis=0, keepdims=True), support.sum(axis=0, keepdims=True))[0]
    resamples = n_bootstrap if n_groups > 1 else 0
    draws = [
        _mean_rate(counts @ lost, counts @ support)
        for counts in resample_counts(n_groups, len(labels), resamples, seed)
    ]
    estimate = percentile_interval(value, np.concatenate([np.empty(0), *draws]))
    return {**estimate, "n": len(labels), "interval": "patient" if patients_known else "image"}


def _mean_rate(part: Floats, whole: Floats) -> Floats:
    """Return the mean over the classes present in each row of part / whole, (B, K) each."""
    rates = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    means: Floats = np.nanmean(rates, axis=1)
    return means
