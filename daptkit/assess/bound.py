"""The three terms of the bound on the target error, measured as far as they can be."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from daptkit.assess.intervals import Estimate, rate_interval, resample_counts
from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_labels, as_matrix
from daptkit.shift.divergence import matrices, proxy_a_distance, standardise_
from daptkit.shift.folds import grouped_folds

REGULARISATION = 0.1
MIN_LABELLED = 10
"""Labelled target images, of at least two patients, below which lambda stays unknown."""
FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Bound:
    """Terms of eps_T(h) <= eps_S(h) + 1/2 d + lambda.

    Args:
        source_error: error on held-out source images, in [0, 1], with its 95% interval.
        divergence: 1/2 d, half the proxy A-distance of the features, in [0, 1]; NaN where it could
            not be measured.
        joint_error: lambda, error at the source plus error at the target of one head trained on
            both, in [0, 2]; ``None`` without labelled target images.
        n_labelled: labelled target images that lambda rests on.
        text: what the figures say, in sentences.
    """

    source_error: Estimate
    divergence: float
    joint_error: float | None
    n_labelled: int
    text: tuple[str, ...]

    @property
    def total(self) -> float | None:
        """Sum of the three terms, ``None`` while one of them is unknown."""
        error = self.source_error["value"]
        if error is None or self.joint_error is None or not np.isfinite(self.divergence):
            return None
        return error + self.divergence + self.joint_error

    def to_json(self) -> dict[str, Any]:
        """Return plain values; an unknown term is ``None``."""
        return {
            "source_error": dict(self.source_error),
            "half_divergence": float(self.divergence) if np.isfinite(self.divergence) else None,
            "joint_error": self.joint_error,
            "n_labelled": self.n_labelled,
            "total": self.total,
            "text": list(self.text),
            "reference": "Ben-David et al. 2010, doi:10.1007/s10994-009-5152-4",
        }


def bound_panel(
    source_features: npt.ArrayLike,
    source_labels: npt.ArrayLike,
    source_predicted: npt.ArrayLike,
    target_features: npt.ArrayLike,
    *,
    labelled_features: npt.ArrayLike | None = None,
    labelled_classes: npt.ArrayLike | None = None,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    labelled_groups: npt.ArrayLike | None = None,
    n_bootstrap: int = 500,
    seed: int = 0,
) -> Bound:
    """Measure the terms of eps_T(h) <= eps_S(h) + 1/2 d_HdH(S, T) + lambda.

    d is the proxy A-distance 2 (1 - 2 eps), which a linear domain classifier can only
    underestimate; lambda = min_h eps_S(h) + eps_T(h) is overestimated by one logistic head trained
    on both domains, held out by patient. Their sum is therefore a guide and no guarantee.

    Args:
        source_features: (N, D) of held-out source images.
        source_labels: (N,) their classes.
        source_predicted: (N,) the model's classes for them.
        target_features: (M, D).
        labelled_features: (L, D) of labelled target images, an audit set that nothing was trained
            on; ``None`` leaves lambda unknown.
        labelled_classes: (L,) their classes.
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        labelled_groups: (L,) patients.
        n_bootstrap: resamples of the interval of the source error.
        seed: of subsamples, folds and resamples.

    Reference: Ben-David et al. 2010, doi:10.1007/s10994-009-5152-4; proxy as in Ben-David et al.
    2007, "Analysis of representations for domain adaptation".

    Raises:
        DataError: arrays that do not fit each other or are not finite, or labelled images without
            classes.
    """
    source, target = matrices(source_features, target_features)
    classes = 1 + max(
        int(np.max(np.asarray(v), initial=0))
        for v in (source_labels, source_predicted, labelled_classes)
        if v is not None
    )
    y = as_labels(source_labels, len(source), classes)
    wrong = as_labels(source_predicted, len(source), classes) != y
    g = as_groups(source_groups, len(source))
    error = _error_interval(wrong, g, n_bootstrap, seed)
    distance = proxy_a_distance(
        source, target, source_groups=g, target_groups=target_groups, seed=seed
    )
    joint, n_labelled = None, 0
    if (labelled_features is None) != (labelled_classes is None):
        raise DataError("labelled target images need both features and classes.")
    if labelled_features is not None and labelled_classes is not None:
        extra = as_matrix(labelled_features, "labelled features")
        labels = as_labels(labelled_classes, len(extra), classes)
        source, extra = matrices(source, extra)
        n_labelled = len(extra)
        joint = joint_error(
            source, y, extra, labels, g, as_groups(labelled_groups, n_labelled), seed
        )
    return Bound(
        source_error=error,
        divergence=0.5 * distance,
        joint_error=joint,
        n_labelled=n_labelled,
        text=_sentences(error, 0.5 * distance, joint, n_labelled),
    )


def joint_error(
    source: FloatArray,
    source_labels: IntArray,
    target: FloatArray,
    target_labels: IntArray,
    source_groups: IntArray,
    target_groups: IntArray,
    seed: int = 0,
) -> float | None:
    """Return the held-out error at the source plus that at the target of one head for both.

    L2 logistic regression on standardised features in which either domain weighs one half. Folds
    never split a patient.

    Args:
        source: (N, D).
        source_labels: (N,).
        target: (L, D) labelled target images.
        target_labels: (L,).
        source_groups: (N,) patients.
        target_groups: (L,) patients.
        seed: of the folds.

    Returns:
        lambda, in [0, 2]; ``None`` with fewer than 10 labelled images, 2 patients of either domain
        or 2 classes.
    """
    folds = min(FOLDS, len(np.unique(source_groups)), len(np.unique(target_groups)))
    if len(target) < MIN_LABELLED or folds < 2:
        return None
    x = np.vstack([source, target])
    y = np.concatenate([source_labels, target_labels])
    if len(np.unique(y)) < 2:
        return None
    domain = np.repeat([0, 1], [len(source), len(target)])
    standardise_(x)
    weight = np.where(domain == 0, 0.5 * len(x) / len(source), 0.5 * len(x) / len(target))
    wrong = np.zeros(len(x))
    fold = np.concatenate(
        [
            grouped_folds(source_labels, source_groups, folds, seed),
            grouped_folds(target_labels, target_groups, folds, seed),
        ]
    )
    for k in range(folds):
        test = fold == k
        wrong[test] = _predict(x[~test], y[~test], weight[~test], x[test]) != y[test]
    return float(wrong[domain == 0].mean() + wrong[domain == 1].mean())


def _predict(x: FloatArray, y: IntArray, weight: FloatArray, further: FloatArray) -> IntArray:
    if len(np.unique(y)) < 2:
        return np.full(len(further), y[0], dtype=np.int64)
    model = LogisticRegression(C=REGULARISATION, max_iter=500)
    with warnings.catch_warnings():
        # A fit stopped early only makes lambda larger.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y, sample_weight=weight)
    return np.asarray(model.predict(further), dtype=np.int64)


def _error_interval(
    wrong: npt.NDArray[np.bool_], groups: IntArray, n_bootstrap: int, seed: int
) -> Estimate:
    n_groups = int(groups.max()) + 1
    images = np.bincount(groups).astype(np.float64)
    errors = np.bincount(groups, weights=wrong)
    draws = [
        counts @ errors / (counts @ images)
        for counts in resample_counts(
            n_groups, len(wrong), n_bootstrap if n_groups > 1 else 0, seed
        )
    ]
    return rate_interval(float(wrong.mean()), np.concatenate([np.empty(0), *draws]), n_groups)


def _sentences(
    error: Estimate, half_distance: float, joint: float | None, n_labelled: int
) -> tuple[str, ...]:
    value = error["value"] or 0.0
    lines = [
        f"On held-out images of its own site the model is wrong in {100 * value:.0f}% of cases."
    ]
    if not np.isfinite(half_distance):
        lines.append("How far the two sites' images differ could not be measured: too few images.")
    else:
        lines.append(
            "What the model sees of the two sites "
            + (
                "can hardly be told apart."
                if half_distance < 0.2
                else "can partly be told apart."
                if half_distance < 0.7
                else "can be told apart almost perfectly, so little carries over by guarantee."
            )
            + f" (distance {half_distance:.2f} on a scale from 0 to 1)"
        )
    if joint is None:
        why = f"{n_labelled} labelled images are too few" if n_labelled else "no labelled image"
        lines.append(
            "Whether one model can be right at both sites is unknown "
            f"({why} of the new site); without that no figure bounds its errors there."
        )
        return tuple(lines)
    lines.append(
        f"One simple model for both sites, tried on {n_labelled} labelled images of the new one, "
        f"makes errors that add up to {100 * joint:.0f}% over the two sites."
    )
    if np.isfinite(half_distance):
        total = value + half_distance + joint
        lines.append(
            f"Together: at most {100 * total:.0f}% errors at the new site (a guide, no guarantee)."
            if total < 1.0
            else "Together they exceed 100%: they promise nothing about the new site."
        )
    return tuple(lines)
