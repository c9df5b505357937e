"""Recalls measured at the source, weighted by the target's prior: right under label shift."""

from __future__ import annotations

import numpy as np

from daptkit.shift.arrays import FloatArray, IntArray
from daptkit.shift.confusion import conditional_confusion, predicted_marginal
from daptkit.shift.estimators import bbse_prior


def class_recalls(
    labels: IntArray, predicted: IntArray, weights: FloatArray, num_classes: int
) -> FloatArray:
    """Return recall_k = P(predicted = k | y = k), (K,); NaN for a class without images."""
    support = np.bincount(labels, weights=weights, minlength=num_classes)
    hits = np.bincount(labels, weights=weights * (predicted == labels), minlength=num_classes)
    recalls: FloatArray = np.divide(
        hits, support, out=np.full(num_classes, np.nan), where=support > 0
    )
    return recalls


def prior_weighted_accuracy(recalls: FloatArray, prior: FloatArray) -> float:
    """Return sum_k q_k recall_k; NaN where a class of the target has no recall.

    Args:
        recalls: (K,) of held-out source images, NaN where unknown.
        prior: q, (K,), of the target.

    Reference: Lipton, Wang, Smola 2018, arXiv:1802.03916: under label shift P(x|y), and so the
    recalls, are those of the source.
    """
    needed = prior > 0
    return float(prior[needed] @ recalls[needed])


def mean_recall(recalls: FloatArray, prior: FloatArray) -> float:
    """Return the mean recall of the classes that the target has, NaN where one is unknown."""
    return float(recalls[prior > 0].mean())


def target_prior(
    source: FloatArray,
    labels: IntArray,
    target: FloatArray,
    source_weights: FloatArray,
    target_weights: FloatArray,
) -> FloatArray:
    """Return q by soft BBSE, (K,): quick enough to be estimated again in every resample.

    Args:
        source: (N, K) posteriors of held-out source images.
        labels: (N,) their classes.
        target: (M, K) posteriors by the same map.
        source_weights: (N,) such as bootstrap counts.
        target_weights: (M,) likewise.
    """
    matrix = conditional_confusion(source, labels, source_weights)
    return bbse_prior(matrix, predicted_marginal(target, target_weights))
