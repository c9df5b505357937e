"""The scores of ``daptkit evaluate``: predictions against labels, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.assess.intervals import (
    LEVEL,
    Estimate,
    Floats,
    biased_interval,
    percentile_interval,
    rate_interval,
    resample_counts,
)
from daptkit.assess.statistics import Ints, ScoredImages, group_sums, statistics
from daptkit.errors import DaptkitError, DataError


def score(
    posterior: npt.ArrayLike,
    labels: npt.ArrayLike,
    map_prediction: npt.ArrayLike,
    balanced_prediction: npt.ArrayLike,
    classes: Sequence[str],
    *,
    groups: npt.ArrayLike,
    patients_known: bool,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Score predictions against labels, each score with a 95% bootstrap interval.

    Every score is ``{"value", "low", "high"}``; ``None`` stands for what is not defined.

    - ``accuracy``: share of right ``map_prediction``, in [0, 1].
    - ``balanced_accuracy``: mean recall of ``balanced_prediction`` over the classes present.
    - ``auroc``: mean one-vs-rest area of the posterior over the classes present; for two classes
      the area with the last one as the positive. In [0, 1].
    - ``ece``: expected calibration error of the largest probability, :math:`\sum_b \frac{n_b}{N}
      |acc_b - conf_b|` over 15 equal-width bins, in [0, 1] (arXiv:1706.04599).
    - ``nll``: mean of -log of the true class's probability, in nats, at most 36.1 (floored).
    - ``brier``: mean of :math:`\sum_k (p_k - y_k)^2`, in [0, 2] (Brier 1950).
    - ``per_class``: by class name, ``support`` (images), ``sensitivity`` and ``specificity`` of
      ``map_prediction``, and ``auroc``.

    Besides: ``n``, ``groups`` (number of independent units), ``interval`` (``"patient"`` or
    ``"image"``: what was resampled), ``level``, ``n_bootstrap``, ``classes``, ``absent`` (classes
    without an image) and ``confusion_matrix`` of ``map_prediction``, rows truth, columns
    prediction. Fewer than two groups, or ``n_bootstrap=0``, give values without intervals.

    Args:
        posterior: (N, K) class probabilities, in [0, 1].
        labels: (N,) true class indices, in [0, K).
        map_prediction: (N,) class indices of the most probable class.
        balanced_prediction: (N,) class indices under the balanced rule.
        classes: K class names.
        groups: (N,) patient number of each image; used only if ``patients_known``.
        patients_known: whether to resample patients; otherwise images are resampled.
        n_bootstrap: number of resamples.
        seed: seed of the resampling, the only state.

    Raises:
        DataError: there is no image to score.
        DaptkitError: a probability is not finite.
        ValueError: the arrays do not fit each other.
    """
    images = _checked(
        posterior, labels, map_prediction, balanced_prediction, groups, patients_known
    )
    if images.posterior.shape[1] != len(classes):
        raise ValueError(f"{images.posterior.shape[1]} columns for {len(classes)} classes")
    sums = group_sums(images)
    point = statistics(images, sums, np.ones((1, images.n_groups)))
    draws = _resampled(images, sums, n_bootstrap, seed)
    present = sums["support"].sum(axis=0) > 0
    return {
        "n": len(images.labels),
        "groups": images.n_groups,
        "interval": "patient" if patients_known else "image",
        "level": LEVEL,
        "n_bootstrap": n_bootstrap,
        "classes": list(classes),
        "absent": [name for name, there in zip(classes, present, strict=True) if not there],
        **_overall(point, draws, sums),
        "per_class": _per_class(point, draws, sums, classes),
        "confusion_matrix": _confusion(images).tolist(),
    }


def _checked(
    posterior: npt.ArrayLike,
    labels: npt.ArrayLike,
    map_prediction: npt.ArrayLike,
    balanced_prediction: npt.ArrayLike,
    groups: npt.ArrayLike,
    patients_known: bool,
) -> ScoredImages:
    p = np.asarray(posterior, dtype=np.float64)
    if p.ndim != 2:
        raise ValueError(f"posterior has shape {p.shape}, not (N, K)")
    if not len(p):
        raise DataError("there is no labelled image to score; choose another --split.")
    bad = int((~np.isfinite(p)).any(axis=1).sum())
    if bad:
        raise DaptkitError(
            f"the probabilities of {bad} of {len(p)} images are not finite; train the model again, "
            "with a lower --lr."
        )
    if p.min() < 0 or p.max() > 1 + 1e-6:
        raise ValueError("posterior lies outside [0, 1]")
    columns = [_indices(x, p.shape) for x in (labels, map_prediction, balanced_prediction)]
    raw = np.asarray(groups) if patients_known else np.arange(len(p))
    if raw.shape != (len(p),):
        raise ValueError(f"groups have shape {raw.shape}, not ({len(p)},)")
    return ScoredImages(
        posterior=p,
        labels=columns[0],
        map_prediction=columns[1],
        balanced_prediction=columns[2],
        groups=np.unique(raw, return_inverse=True)[1].astype(np.int64),
    )


def _indices(values: npt.ArrayLike, shape: tuple[int, ...]) -> Ints:
    indices = np.asarray(values, dtype=np.int64)
    if indices.shape != shape[:1]:
        raise ValueError(f"class indices have shape {indices.shape}, not {shape[:1]}")
    if indices.min() < 0 or indices.max() >= shape[1]:
        raise ValueError(f"class indices lie outside [0, {shape[1]})")
    return indices


def _resampled(
    images: ScoredImages, sums: dict[str, Floats], n_bootstrap: int, seed: int
) -> dict[str, Floats]:
    if images.n_groups < 2:
        n_bootstrap = 0
    blocks = [
        statistics(images, sums, counts)
        for counts in resample_counts(images.n_groups, len(images.labels), n_bootstrap, seed)
    ]
    # No resample: statistics of no weighting, so that every name has its (0,) or (0, K) draws.
    blocks = blocks or [statistics(images, sums, np.empty((0, images.n_groups)))]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _overall(
    point: dict[str, Floats], draws: dict[str, Floats], sums: dict[str, Floats]
) -> dict[str, Any]:
    def value(name: str) -> float:
        return float(point[name][0])

    # A mean of recalls is as sure as if every class present were as rare as the rarest.
    with_class = (sums["support"] > 0).sum(axis=0)
    units = int(with_class[with_class > 0].min() * (with_class > 0).sum())
    return {
        "accuracy": rate_interval(value("accuracy"), draws["accuracy"], len(sums["support"])),
        "balanced_accuracy": rate_interval(
            value("balanced_accuracy"), draws["balanced_accuracy"], units
        ),
        "auroc": percentile_interval(value("auroc"), draws["auroc"]),
        "ece": biased_interval(value("ece"), draws["ece"]),
        "nll": percentile_interval(value("nll"), draws["nll"]),
        "brier": percentile_interval(value("brier"), draws["brier"]),
    }


def _per_class(
    point: dict[str, Floats],
    draws: dict[str, Floats],
    sums: dict[str, Floats],
    classes: Sequence[str],
) -> dict[str, dict[str, Any]]:
    support = sums["support"]  # (G, K)
    with_class = (support > 0).sum(axis=0)
    without_class = (support.sum(axis=1, keepdims=True) > support).sum(axis=0)

    def rate(name: str, k: int, n_groups: Ints) -> Estimate:
        return rate_interval(float(point[name][0, k]), draws[name][:, k], int(n_groups[k]))

    return {
        label: {
            "support": int(support[:, k].sum()),
            "sensitivity": rate("sensitivity", k, with_class),
            "specificity": rate("specificity", k, without_class),
            "auroc": percentile_interval(
                float(point["class_auroc"][0, k]), draws["class_auroc"][:, k]
            ),
        }
        for k, label in enumerate(classes)
    }


def _confusion(images: ScoredImages) -> Ints:
    n_classes = images.posterior.shape[1]
    cells = images.labels * n_classes + images.map_prediction
    counts = np.bincount(cells, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes).astype(np.int64)
