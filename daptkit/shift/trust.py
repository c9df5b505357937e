"""When an estimate of the target prior is not to be trusted.

The limits were set by simulation (``tests/benchmarks/label_shift.py``), :data:`CONFIDENT` on MNIST
to USPS: pure label shift with a decent classifier and 200 images of each domain passes, and most
feature shifts that mislead the estimate do not. ``tests/benchmarks/trust_on_images.py`` tries them
on real images, which is how the features' check came in: a classifier that maps a whole site to one
class passes every check of its outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daptkit.shift.arrays import FloatArray, IntArray, one_hot
from daptkit.shift.confusion import conditional_confusion, predicted_marginal
from daptkit.shift.estimators import bbse_prior

MAX_CLASSES_FOR_RUNNER_UP = 12
"""Above it cells are too many to hold images; the runner-up class is then left out."""

CONFIDENT = 0.9
"""Posterior above which an image's runner-up class says nothing of the prior."""


@dataclass(frozen=True, kw_only=True)
class TrustLimits:
    """Limits beyond which an estimate is not used.

    Args:
        min_per_class: held-out source images of the rarest class.
        min_target: target images.
        min_skill: (balanced accuracy - 1/K) / (1 - 1/K) on held-out source images.
        min_condition: smallest singular value of the soft confusion matrix.
        max_noise_ratio: residual over its sampling noise; about 1 under pure label shift.
        max_implied_error: (residual - noise) / smallest singular value, roughly the L1 error of
            the prior that the misfit can cause; both residual limits must be passed to abstain.
        max_feature_gap: distance of the domains' features after re-weighting, in units of that
            between classes (:func:`daptkit.shift.feature_gap`); 0 under pure label shift.
        max_agreement: L1 distance between EM and BBSE.
        max_spread: mean L1 distance of bootstrap replicates from the estimate.
        min_ess: effective number of weighted source images.
    """

    min_per_class: int = 5
    min_target: int = 30
    min_skill: float = 0.2
    min_condition: float = 0.05
    max_noise_ratio: float = 1.3
    max_implied_error: float = 0.35
    max_feature_gap: float = 0.25
    max_agreement: float = 0.4
    max_spread: float = 0.4
    min_ess: float = 30.0


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of an estimate; the terms are those of :class:`TrustLimits`.

    ``feature_gap`` is NaN where features are not given or too few.
    """

    class_counts: IntArray
    n_target: int
    condition: float
    balanced_accuracy: float
    residual: float
    residual_noise: float
    feature_gap: float
    agreement: float
    spread: float | None


def representation(
    source: FloatArray,
    labels: IntArray,
    source_groups: IntArray,
    target: FloatArray,
    target_groups: IntArray,
) -> tuple[float, float]:
    """Return (residual, noise) of the target's predictions as a mixture of the source's classes.

    Posteriors (N, K) are put into cells m: by first class; where its posterior is at most 0.9, also
    by second class and by being above or below the median of the source (0.9 if that is lower).
    residual = |A q - mu|_1, A[m, j] = P_s(m | y = j), mu_m = P_t(m), q the least squares mixture.
    K cells could fit almost any target; these outnumber the classes. Above 0.9 they leave
    confidence out, which moves no prior but changes with every scanner.
    noise = sum_m sqrt(2/pi v_m), v_m = sum_j q_j^2 A_mj (1 - A_mj) / n_j
    + (Aq)_m (1 - (Aq)_m) / n_t, n_j and n_t patients, is about its mean under label shift alone.

    Reference: Rabanser, Guennemann, Lipton 2019, arXiv:1810.11953 (tests on classifier outputs).
    """
    k = source.shape[1]
    median = min(float(np.median(source.max(axis=1))), CONFIDENT)
    matrix = conditional_confusion(_cells(source, median), labels, num_classes=k)
    marginal = predicted_marginal(_cells(target, median))
    q = bbse_prior(matrix, marginal)
    fitted = matrix @ q
    n_j = np.array([len(np.unique(source_groups[labels == j])) for j in range(k)])
    n_t = len(np.unique(target_groups))
    variance = (matrix * (1.0 - matrix)) @ (q * q / np.maximum(n_j, 1))
    variance += fitted * (1.0 - fitted) / n_t
    noise = float(np.sqrt(2.0 / np.pi * np.maximum(variance, 0.0)).sum())
    return float(np.abs(fitted - marginal).sum()), noise


def _cells(posterior: FloatArray, median: float) -> FloatArray:
    """Return indicators of the cell of each row, (N, cells)."""
    n, k = posterior.shape
    order = np.argsort(posterior, axis=1, kind="stable")
    first = order[:, -1].astype(np.int64)
    top = posterior[np.arange(n), first]
    unsure, number = first, k
    if 2 < k <= MAX_CLASSES_FOR_RUNNER_UP:
        unsure, number = first * k + order[:, -2], k * k
    cell = np.where(top > CONFIDENT, first, k + 2 * unsure + (top > median))
    return one_hot(cell, k + 2 * number)


def distrust(evidence: Evidence, ess: float, limits: TrustLimits) -> tuple[str, ...]:
    """Return one sentence for each check that fails; none if the estimate can be used."""
    e = evidence
    k = len(e.class_counts)
    skill = (e.balanced_accuracy - 1.0 / k) / (1.0 - 1.0 / k) if k > 1 else 0.0
    ratio = e.residual / e.residual_noise if e.residual_noise > 0 else np.inf
    implied = (e.residual - e.residual_noise) / max(e.condition, 1e-6)
    misfit = ratio > limits.max_noise_ratio and implied > limits.max_implied_error
    rarest = int(e.class_counts.min())
    checks = (
        (
            rarest < limits.min_per_class,
            f"the rarest class has {rarest} held-out source images, fewer than "
            f"{limits.min_per_class}",
        ),
        (
            e.n_target < limits.min_target,
            f"there are {e.n_target} target images, fewer than {limits.min_target}",
        ),
        (
            skill < limits.min_skill,
            f"the classifier is near chance on held-out source images (balanced accuracy "
            f"{e.balanced_accuracy:.2f} of {k} classes)",
        ),
        (
            e.condition < limits.min_condition,
            f"the confusion matrix is near-singular (smallest singular value {e.condition:.3f})",
        ),
        (
            misfit,
            f"no mixture of the source classes explains the target's predictions (L1 residual "
            f"{e.residual:.2f}, sampling noise {e.residual_noise:.2f}): more than the prior "
            "changed",
        ),
        (
            e.feature_gap > limits.max_feature_gap,
            f"features of one class differ between the domains (re-weighted, the domains are "
            f"{e.feature_gap:.2f} times as far apart as classes are): more than the prior changed",
        ),
        (
            e.agreement > limits.max_agreement,
            f"EM and BBSE disagree (L1 distance {e.agreement:.2f})",
        ),
        (
            e.spread is not None and e.spread > limits.max_spread,
            f"the bootstrap interval is too wide (mean L1 deviation {e.spread or 0.0:.2f})",
        ),
        (
            ess < limits.min_ess,
            f"the weights leave an effective sample of {ess:.0f} source images, fewer than "
            f"{limits.min_ess:.0f}",
        ),
    )
    return tuple(text for failed, text in checks if failed)
