"""Logits of both sites by heads on frozen features that have not seen the image's patient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_labels
from daptkit.shift.crossfit import FoldHead, projection, split_patients
from daptkit.shift.divergence import matrices

FOLDS = 5


def unseen_logits(
    source: npt.ArrayLike,
    labels: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    folds: int = FOLDS,
    seed: int = 0,
    num_classes: int | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return logits of the source (N, K) and of the target (M, K) that can be compared.

    One L2 multinomial logistic regression a fold, as in :func:`daptkit.shift.cross_fitted_logits`,
    but its standardisation and principal components are of its own training part too, and each
    target patient is predicted by one fold's head, drawn at random. A source and a target patient
    of a fold are then treated alike to the last detail, as a test that permutes patients assumes:
    the mean of all heads is surer of itself than one of them, and components that have seen the
    source's images fit them better than the target's.

    Args:
        source: (N, D), from a network that was not trained on these images.
        labels: (N,) class indices.
        target: (M, D).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        folds: at least 2; fewer are used when there are fewer patients.
        seed: of folds and components.
        num_classes: K, by default the largest label + 1.

    Reference: Chernozhukov et al. 2018, arXiv:1608.00060 (cross-fitting).

    Raises:
        DataError: arrays of wrong shape, features that are not finite, fewer than 2 patients or
            classes in the source.
    """
    x, t = matrices(source, target)
    k = int(np.max(labels)) + 1 if num_classes is None else num_classes
    y = as_labels(labels, len(x), k)
    g_s, g_t = as_groups(source_groups, len(x)), as_groups(target_groups, len(t))
    splits = min(folds, int(g_s.max()) + 1, int(np.bincount(y).max()))
    if splits < 2 or len(np.unique(y)) < 2:
        raise DataError(
            "a classifier needs at least 2 patients and 2 classes in the source; add images."
        )
    parts = split_patients(y, g_s, splits, seed)
    chosen = _drawn_folds(g_t, len(parts), seed)
    out_s, out_t = np.zeros((len(x), k)), np.zeros((len(t), k))
    for number, (train, test) in enumerate(parts):
        project = projection(x[train], seed)
        head = FoldHead(project(x[train]), y[train], k)
        out_s[test] = head.log_posterior(project(x[test]))
        rows = np.flatnonzero(chosen == number)
        if len(rows):
            out_t[rows] = head.log_posterior(project(t[rows]))
    return out_s, out_t


def _drawn_folds(groups: IntArray, folds: int, seed: int) -> IntArray:
    """Return the fold of each row, (M,): patients in random order are dealt out in turn."""
    order = np.random.default_rng([seed, 1]).permutation(int(groups.max()) + 1)
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = np.arange(len(order)) % folds
    return np.asarray(fold[groups])
