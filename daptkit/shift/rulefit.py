"""Fitting a prediction rule on held-out source images: calibration, source prior, threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from daptkit.errors import DataError
from daptkit.shift.arrays import (
    FloatArray,
    IntArray,
    as_labels,
    as_matrix,
    as_prior,
    effective_sample_size,
    floored,
)
from daptkit.shift.calibration import Calibration, fit_calibration
from daptkit.shift.choice import FITTED, CalibrationChoice, choose_calibration
from daptkit.shift.prediction import PredictionRule, parse_decide

COMPARED = 2000
"""Held-out images that kinds of calibration are compared on at most."""


def fit_rule(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    class_weights: npt.ArrayLike | None,
    target_prior: npt.ArrayLike | None,
    decide: str,
    classes: Sequence[str],
    *,
    calibration: str | None = None,
    groups: npt.ArrayLike | None = None,
) -> PredictionRule:
    """Fit calibration, source prior and threshold on source validation images.

    Args:
        logits: (N, K), uncorrected.
        labels: (N,) class indices.
        class_weights: (K,) weights in force during training; ones if ``None``.
        target_prior: (K,) q, or ``None`` where the target keeps the source's prior.
        decide: ``map``, ``balanced`` or ``sens=CLASS:VALUE``.
        classes: K names.
        calibration: a kind of :data:`daptkit.shift.calibration.KINDS`; ``"cross-validated"`` for
            what :func:`daptkit.shift.choose_calibration` chooses of those that are fitted;
            ``None`` for temperature with class biases as far as there are images for them.
        groups: (N,) patients, for ``"cross-validated"``; one per image if ``None``.

    Raises:
        UsageError: impossible ``decide`` or ``calibration``.
        DataError: arrays of wrong shape, or no validation image of a ``sens=`` class.
    """
    if calibration == "cross-validated":
        return fit_chosen_rule(
            logits, labels, class_weights, target_prior, decide, classes, groups=groups
        )[0]
    parse_decide(decide, classes)  # a mistyped rule is told before the work
    z, y, per_class, weights = _in_force(logits, labels, class_weights, classes)
    fitted = fit_calibration(z, y, weights, kind=calibration)
    return _rule(z, y, per_class, weights, fitted, target_prior, decide, classes)


def fit_chosen_rule(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    class_weights: npt.ArrayLike | None,
    target_prior: npt.ArrayLike | None,
    decide: str,
    classes: Sequence[str],
    *,
    groups: npt.ArrayLike | None = None,
) -> tuple[PredictionRule, CalibrationChoice]:
    """Return what :func:`fit_rule` fits with ``calibration="cross-validated"``, and the choice.

    Arguments and errors are those of :func:`fit_rule`.
    """
    parse_decide(decide, classes)  # a mistyped rule is told before the work
    z, y, per_class, weights = _in_force(logits, labels, class_weights, classes)
    choice = choose_calibration(z, y, weights, groups=groups, kinds=FITTED, limit=COMPARED)
    rule = _rule(z, y, per_class, weights, choice.calibration, target_prior, decide, classes)
    return rule, choice


def _in_force(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    class_weights: npt.ArrayLike | None,
    classes: Sequence[str],
) -> tuple[FloatArray, IntArray, FloatArray, FloatArray]:
    """Return logits, labels, the weight of each class (K,) and of each image (N,)."""
    z = as_matrix(logits)
    y = as_labels(labels, len(z), len(classes))
    per_class = _class_weights(class_weights, len(classes))
    weights = per_class[y]
    if weights.sum() <= 0:
        # Weight left on absent classes only says nothing about the images that are there.
        per_class, weights = np.ones(len(classes)), np.ones(len(y))
    return z, y, per_class, weights


def _rule(
    z: FloatArray,
    y: IntArray,
    per_class: FloatArray,
    weights: FloatArray,
    fitted: Calibration,
    target_prior: npt.ArrayLike | None,
    decide: str,
    classes: Sequence[str],
) -> PredictionRule:
    """Return the rule of a fitted calibration."""
    mean = weights @ np.exp(fitted.log_posterior(z)) / weights.sum()
    rule = PredictionRule(
        classes=tuple(classes),
        calibration=fitted,
        source_prior=floored(mean, effective_sample_size(weights)),
        target_prior=None if target_prior is None else as_prior(target_prior, len(classes)),
        decide=decide,
        thresholds={},
        class_weights=None if (per_class == 1.0).all() else per_class,
    )
    wanted = parse_decide(decide, classes)
    if wanted is None:
        return rule
    scores = rule.balanced_posterior(z)[y == wanted.class_index, wanted.class_index]
    if not len(scores):
        raise DataError(
            f"no source validation image of class {classes[wanted.class_index]!r}, so --decide "
            f"{decide!r} has no threshold; hold out more images or use --decide map."
        )
    return replace(rule, thresholds={decide: sensitivity_threshold(scores, wanted.sensitivity)})


def sensitivity_threshold(scores: npt.ArrayLike, sensitivity: float) -> float:
    """Return the largest t with mean(scores >= t) >= sensitivity.

    Args:
        scores: (N,) of the images of one class, at least one.
        sensitivity: in (0, 1].
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    # The tolerance keeps 0.95 * 20 = 19.000000000000004 from asking for 20 images.
    needed = max(1, math.ceil(sensitivity * len(ordered) - 1e-9))
    return float(ordered[needed - 1])


def _class_weights(class_weights: npt.ArrayLike | None, num_classes: int) -> FloatArray:
    if class_weights is None:
        return np.ones(num_classes)
    weights = np.asarray(class_weights, dtype=np.float64)
    if weights.shape != (num_classes,) or not (weights >= 0).all():
        raise DataError(f"class weights must be {num_classes} values, none negative or NaN.")
    return weights
