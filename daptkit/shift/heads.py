"""Logits of both sites by heads on frozen features that have not seen the image's patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
    out_s, out_t = np.zeros((len(x), k)), np.zeros((len(t), k))
    for fold in unseen_folds(x, y, g_s, g_t, folds, seed):
        head = FoldHead(fold.project(x[fold.train]), y[fold.train], k)
        out_s[fold.source] = head.log_posterior(fold.project(x[fold.source]))
        if len(fold.target):
            out_t[fold.target] = head.log_posterior(fold.project(t[fold.target]))
    return out_s, out_t


@dataclass(frozen=True, kw_only=True)
class UnseenFold:
    """One fold: what its heads learn from, and what they predict.

    Args:
        train: rows of the source to train on.
        source: rows of the source to predict, of other patients.
        target: rows of the target to predict.
        project: standardisation and principal components of the training rows.
    """

    train: npt.NDArray[np.intp]
    source: npt.NDArray[np.intp]
    target: npt.NDArray[np.intp]
    project: Callable[[FloatArray], FloatArray]


def unseen_folds(
    x: FloatArray,
    y: IntArray,
    source_groups: IntArray,
    target_groups: IntArray,
    folds: int,
    seed: int,
) -> Iterator[UnseenFold]:
    """Yield folds that treat patients of both sites alike, as :func:`unseen_logits` says.

    Args:
        x: (N, D) source features.
        y: (N,) class indices.
        source_groups: (N,) patients numbered from 0.
        target_groups: (M,) likewise.
        folds: at least 2; fewer are made when there are fewer patients.
        seed: of folds and components.

    Raises:
        DataError: fewer than 2 patients or classes in the source.
    """
    splits = min(folds, int(source_groups.max()) + 1, int(np.bincount(y).max()))
    if splits < 2 or len(np.unique(y)) < 2:
        raise DataError(
            "a classifier needs at least 2 patients and 2 classes in the source; add images."
        )
    parts = split_patients(y, source_groups, splits, seed)
    chosen = _drawn_folds(target_groups, len(parts), seed)
    for number, (train, test) in enumerate(parts):
        yield UnseenFold(
            train=train,
            source=test,
            target=np.flatnonzero(chosen == number),
            project=projection(x[train], seed),
        )


def _drawn_folds(groups: IntArray, folds: int, seed: int) -> IntArray:
    """Return the fold of each row, (M,): patients in random order are dealt out in turn."""
    order = np.random.default_rng([seed, 1]).permutation(int(groups.max()) + 1)
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = np.arange(len(order)) % folds
    return np.asarray(fold[groups])
