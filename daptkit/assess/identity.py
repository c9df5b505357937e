"""Do two models mean the same by a class? Collapse, swapped names and impossible frequencies."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from daptkit.assess.summary import COLLAPSE_FRACTION
from daptkit.shift.arrays import FloatArray, IntArray
from daptkit.shift.confusion import conditional_confusion, predicted_marginal
from daptkit.shift.estimators import bbse_prior

SWAP_MARGIN = 0.2
"""Share of a class's images by which another name must fit better to count as swapped."""
MIN_BREADTH = 0.6
"""Share of the reference's :func:`breadth` below which a model is on its way to collapse."""
MIN_SWAPPED = 10
"""Images of the classes concerned below which nothing is said of their names."""


def contingency(reference: IntArray, predicted: IntArray, num_classes: int) -> FloatArray:
    """Return C[i, j], (K, K): images that ``predicted`` calls i and ``reference`` calls j."""
    cells = predicted * num_classes + reference
    counts = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    return counts.astype(np.float64)


def chance_corrected_agreement(reference: IntArray, predicted: IntArray, num_classes: int) -> float:
    """Return Cohen's kappa of two models: 1 always agree, 0 as by chance, below 0 less.

    (o - e) / (1 - e), o the observed agreement, e = sum_k P(ref = k) P(pred = k); 1 where both
    give one and the same class to every image, which leaves nothing to measure.

    Args:
        reference: (N,) classes by the one model.
        predicted: (N,) by the other.
        num_classes: K.

    Reference: Cohen 1960, doi:10.1177/001316446002000104.
    """
    table = contingency(reference, predicted, num_classes) / len(reference)
    expected = float(table.sum(axis=0) @ table.sum(axis=1))
    if expected >= 1.0:
        return 1.0
    return (float(np.trace(table)) - expected) / (1.0 - expected)


def swapped_classes(
    reference: IntArray, predicted: IntArray, num_classes: int
) -> tuple[tuple[int, ...], ...]:
    """Return cycles of classes whose names one model gives in another order than the other.

    The assignment of names that agrees with the reference on most images is found. One of its
    cycles is told if for every class of it the other name fits better, by 0.2 of the images so
    called, and for 10 images at least in all. A model that splits what the reference merged into
    one class is no swap: for that class the name as it is fits best.

    Args:
        reference: (N,) classes by a model whose names are known to be right more often than not.
        predicted: (N,) classes by the other.
        num_classes: K.

    Returns:
        cycles (i, j, ...): what ``predicted`` calls i is the reference's j, and so on.

    Reference: Kuhn 1955, doi:10.1002/nav.3800020109 (the assignment).
    """
    table = contingency(reference, predicted, num_classes)
    # Ties go to the names as they are.
    _, name = linear_sum_assignment(table + 1e-6 * np.eye(num_classes), maximize=True)
    found, seen = [], set[int]()
    for start in range(num_classes):
        cycle = []
        at = start
        while at not in seen:
            seen.add(at)
            cycle.append(at)
            at = int(name[at])
        if len(cycle) < 2:
            continue
        renamed = table[cycle, name[cycle]]
        gain = renamed - table[cycle, cycle]
        needed = SWAP_MARGIN * table[cycle].sum(axis=1)
        if renamed.sum() >= MIN_SWAPPED and (gain > needed).all():
            found.append(tuple(cycle))
    return tuple(found)


def unexplained_collapse(
    predicted: IntArray, num_classes: int, prior_high: FloatArray | None = None
) -> int | None:
    """Return the class that takes more than 95% of the images without reason, else ``None``.

    Args:
        predicted: (N,) classes on the target.
        num_classes: K.
        prior_high: (K,) upper ends of a trusted estimate of the target's prior: a class that may
            be that frequent is no collapse.
    """
    share = np.bincount(predicted, minlength=num_classes) / len(predicted)
    top = int(share.argmax())
    if share[top] <= COLLAPSE_FRACTION:
        return None
    return None if prior_high is not None and prior_high[top] >= COLLAPSE_FRACTION else top


def breadth(predicted: IntArray, num_classes: int) -> float:
    """Return exp(H), the number of equally frequent classes that would spread as evenly, in [1, K].

    H is the entropy of the classes' shares. A model on its way to collapse has far less than its
    source-only twin.

    Args:
        predicted: (N,) classes.
        num_classes: K.

    Reference: Hill 1973, doi:10.2307/1934352.
    """
    share = np.bincount(predicted, minlength=num_classes) / len(predicted)
    share = share[share > 0]
    return float(np.exp(-(share @ np.log(share))))


def beyond_prior(
    source: FloatArray,
    labels: IntArray,
    target: FloatArray,
    prior_low: FloatArray,
    prior_high: FloatArray,
) -> float:
    """Return how far the prior that a model implies lies outside an interval, L1, in [0, 2].

    q = soft BBSE of the model's predictions, so that its known confusions are no deviation;
    sum_k max(low_k - q_k, q_k - high_k, 0).

    Args:
        source: (N, K) posteriors of held-out source images.
        labels: (N,) their classes.
        target: (M, K) posteriors by the same map.
        prior_low: (K,) of a trusted estimate of the target's prior.
        prior_high: (K,).
    """
    q = bbse_prior(conditional_confusion(source, labels), predicted_marginal(target))
    return float(np.maximum(np.maximum(prior_low - q, q - prior_high), 0.0).sum())
