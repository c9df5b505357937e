"""The difference of two models on the same images, with an interval that knows so."""

from __future__ import annotations

from typing import Any

import numpy as np

from daptkit.assess.intervals import Estimate, Floats, percentile_interval, resample_counts
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
    classes, columns = np.unique(labels, return_inverse=True)
    lost = _lost(labels, before, after, columns, len(classes), groups, patients_known)
    return {
        **_interval(*lost, n_bootstrap, seed),
        "n": len(labels),
        "interval": "patient" if patients_known else "image",
    }


def audit_difference(
    labels: Ints,
    before: Ints,
    after: Ints,
    *,
    balanced_before: Ints,
    balanced_after: Ints,
    groups: Ints,
    patients_known: bool,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what one model truly gained over another on labelled images of an audit set.

    after - before of accuracy and of the mean recall over the classes present, each with a paired
    percentile bootstrap interval as in :func:`lost_balanced_accuracy`. It checks a verdict and is
    never part of one.

    Args:
        labels: (N,) true class indices.
        before: (N,) most probable classes by the one model.
        after: (N,) by the other.
        balanced_before: (N,) the one model's classes under the balanced rule.
        balanced_after: (N,) the other's.
        groups: (N,) patient number of each image; used only if ``patients_known``.
        patients_known: whether to resample patients; otherwise images are resampled.
        n_bootstrap: number of resamples.
        seed: seed of the resampling.

    Returns:
        ``accuracy`` and ``balanced_accuracy``, each ``value``, ``low`` and ``high`` in [-1, 1],
        above 0 where ``after`` is better; ``n`` images; ``interval``, ``"patient"`` or ``"image"``.

    Raises:
        ValueError: there is no image.
    """
    one_column = np.zeros(len(labels), dtype=np.int64)
    # Gained by the other model is lost by the one: the arguments change places.
    overall = _lost(labels, after, before, one_column, 1, groups, patients_known)
    lost = lost_balanced_accuracy(
        labels,
        balanced_after,
        balanced_before,
        groups=groups,
        patients_known=patients_known,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    return {
        "accuracy": _interval(*overall, n_bootstrap, seed),
        "balanced_accuracy": {end: lost[end] for end in ("value", "low", "high")},
        "n": lost["n"],
        "interval": lost["interval"],
    }


def _lost(
    labels: Ints,
    before: Ints,
    after: Ints,
    columns: Ints,
    width: int,
    groups: Ints,
    patients_known: bool,
) -> tuple[Floats, Floats, int]:
    """Return what was lost and the images, (G, F) each by group and column, and their number.

    Raises:
        ValueError: there is no image.
    """
    if not len(labels):
        raise ValueError("no images to compare two models on")
    unit = groups if patients_known else np.arange(len(labels))
    _, numbers = np.unique(unit, return_inverse=True)
    support = np.zeros((int(numbers.max()) + 1, width))
    lost = np.zeros_like(support)
    np.add.at(support, (numbers, columns), 1.0)
    np.add.at(lost, (numbers, columns), (before == labels) * 1.0 - (after == labels))
    return lost, support, len(labels)


def _interval(
    lost: Floats, support: Floats, n_images: int, n_bootstrap: int, seed: int
) -> Estimate:
    value = _mean_rate(lost.sum(axis=0, keepdims=True), support.sum(axis=0, keepdims=True))[0]
    resamples = n_bootstrap if len(support) > 1 else 0
    draws = [
        _mean_rate(counts @ lost, counts @ support)
        for counts in resample_counts(len(support), n_images, resamples, seed)
    ]
    return percentile_interval(value, np.concatenate([np.empty(0), *draws]))


def _mean_rate(part: Floats, whole: Floats) -> Floats:
    """Return the mean over the classes present in each row of part / whole, (B, K) each."""
    rates = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    means: Floats = np.nanmean(rates, axis=1)
    return means
