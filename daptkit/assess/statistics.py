"""Every score under many weightings of the same images, from sums over each group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daptkit.assess.auroc import weighted_auroc
from daptkit.assess.intervals import Floats

Ints = npt.NDArray[np.int64]

ECE_BINS = 15
"""Equal-width bins of the confidence, each open below and closed above."""

PROBABILITY_FLOOR = float(np.finfo(np.float64).eps)
"""Smallest probability that the log likelihood sees, so that one sure mistake stays finite."""


@dataclass(frozen=True, kw_only=True)
class ScoredImages:
    """Checked inputs of a scoring: N images of K classes, groups renumbered 0..G-1."""

    posterior: Floats  # (N, K)
    labels: Ints  # (N,)
    map_prediction: Ints  # (N,)
    balanced_prediction: Ints  # (N,)
    groups: Ints  # (N,)

    @property
    def n_groups(self) -> int:
        """Number of groups G."""
        return int(self.groups.max()) + 1


def confidence_bins(confidence: Floats) -> Ints:
    """Return the bin, 0 ... :data:`ECE_BINS` - 1, of each confidence (N,) in [0, 1]."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)


def group_sums(images: ScoredImages) -> dict[str, Floats]:
    """Sum over each group's images what the additive scores need: name -> (G, F)."""
    p, y = images.posterior, images.labels
    n_classes = p.shape[1]
    right = images.map_prediction == y
    confidence = p.max(axis=1)
    bins = confidence_bins(confidence)
    truth = np.eye(n_classes)[y]  # (N, K)
    nll = -np.log(np.clip(p[np.arange(len(y)), y], PROBABILITY_FLOOR, 1.0))
    one = np.zeros(len(y), dtype=np.int64)

    def table(column: Ints, width: int, values: npt.ArrayLike) -> Floats:
        sums = np.zeros((images.n_groups, width))
        np.add.at(sums, (images.groups, column), np.asarray(values, dtype=np.float64))
        return sums

    return {
        "support": table(y, n_classes, 1.0),
        "predicted": table(images.map_prediction, n_classes, 1.0),
        "right": table(y, n_classes, right),
        "right_balanced": table(y, n_classes, images.balanced_prediction == y),
        "nll": table(one, 1, nll),
        "brier": table(one, 1, ((p - truth) ** 2).sum(axis=1)),
        "calibration_gap": table(bins, ECE_BINS, right - confidence),
    }


def statistics(images: ScoredImages, sums: dict[str, Floats], counts: Floats) -> dict[str, Floats]:
    """Return every score under each weighting of the groups, (B,) or (B, K); NaN if undefined.

    Args:
        images: the N images.
        sums: what :func:`group_sums` gives for them.
        counts: (B, G) how often each group counts.
    """
    total = {name: counts @ per_group for name, per_group in sums.items()}  # (B, F)
    n = total["support"].sum(axis=1)  # (B,)
    negatives = n[:, None] - total["support"]  # (B, K)
    false_alarms = total["predicted"] - total["right"]  # (B, K)
    auroc = _auroc(images, counts)
    return {
        "accuracy": total["right"].sum(axis=1) / n,
        "balanced_accuracy": _row_mean(_ratio(total["right_balanced"], total["support"])),
        "auroc": auroc[:, -1] if auroc.shape[1] == 2 else _row_mean(auroc),
        "ece": np.abs(total["calibration_gap"]).sum(axis=1) / n,
        "nll": total["nll"][:, 0] / n,
        "brier": total["brier"][:, 0] / n,
        "sensitivity": _ratio(total["right"], total["support"]),
        "specificity": _ratio(negatives - false_alarms, negatives),
        "class_auroc": auroc,
    }


def _auroc(images: ScoredImages, counts: Floats) -> Floats:
    """Return the one-vs-rest area of each class under each weighting, (B, K)."""
    weights = np.ascontiguousarray(counts.T)[images.groups]  # (N, B)
    return np.stack(
        [
            weighted_auroc(images.posterior[:, k], images.labels == k, weights)
            for k in range(images.posterior.shape[1])
        ],
        axis=1,
    )


def _ratio(part: Floats, whole: Floats) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratio


def _row_mean(values: Floats) -> Floats:
    """Return the mean of each row over its defined entries, NaN for a row without any."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))
