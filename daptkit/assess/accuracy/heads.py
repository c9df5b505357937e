"""Heads trained apart on resampled patients: what they agree on they are often right about."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_labels
from daptkit.shift.divergence import matrices
from daptkit.shift.heads import FOLDS, unseen_folds

HEADS = 5
"""Heads trained apart; the line over their pairs needs at least four."""
MAX_FOR_HEADS = 2000
"""Source images that a head is trained on at most."""


def resampled_heads(
    features: FloatArray,
    labels: IntArray,
    groups: IntArray,
    further: Sequence[FloatArray],
    rng: np.random.Generator,
) -> tuple[IntArray, ...] | None:
    """Return the classes (H, N) that linear heads, each of other patients, give to further images.

    Args:
        features: (T, D) to train on, of a common scale.
        labels: (T,) class indices.
        groups: (T,) patients.
        further: features (N, D) to predict, one matrix or several.
        rng: draws the patients of each head.

    Returns:
        One array for each of ``further``; ``None`` where a head would see fewer than two classes.
    """
    found: list[list[IntArray]] = [[] for _ in further]
    for _ in range(HEADS):
        rows = _drawn_rows(groups, rng)
        if len(np.unique(labels[rows])) < 2:
            return None
        head = LogisticRegression(C=0.1, max_iter=200)
        with warnings.catch_warnings():
            # A head that stops early is another head, which is what is wanted.
            warnings.simplefilter("ignore", ConvergenceWarning)
            head.fit(features[rows], labels[rows])
        for place, one in zip(found, further, strict=True):
            place.append(head.predict(one))
    return tuple(np.asarray(place, dtype=np.int64) for place in found)


def unseen_heads(
    source: npt.ArrayLike,
    labels: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> tuple[IntArray, IntArray] | None:
    """Return the classes (H, N) and (H, M) by heads that have not seen an image's patient.

    In each fold of :func:`daptkit.shift.heads.unseen_folds` H heads are trained on resampled
    patients of the other folds. So agreement at the source is that on held-out images, beside which
    agreement at the target and the heads' own accuracy can be put.

    Args:
        source: (N, D), from a network that was not trained on these images.
        labels: (N,) class indices.
        target: (M, D).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        seed: of folds, components and resampling.

    Returns:
        Classes at the source and at the target; ``None`` where a head would see one class only.

    Raises:
        DataError: arrays of wrong shape or not finite, fewer than 2 patients or classes.
    """
    x, t = matrices(source, target)
    y = as_labels(labels, len(x), int(np.max(labels)) + 1)
    g_s, g_t = as_groups(source_groups, len(x)), as_groups(target_groups, len(t))
    out_s = np.zeros((HEADS, len(x)), dtype=np.int64)
    out_t = np.zeros((HEADS, len(t)), dtype=np.int64)
    rng = np.random.default_rng([seed, 3])
    for fold in unseen_folds(x, y, g_s, g_t, FOLDS, seed):
        places = [(out_s, fold.source, x), (out_t, fold.target, t)]
        # A fold may hold no patient of a small target; scikit-learn predicts no empty matrix.
        places = [place for place in places if len(place[1])]
        heads = resampled_heads(
            fold.project(x[fold.train]),
            y[fold.train],
            g_s[fold.train],
            [fold.project(values[rows]) for _, rows, values in places],
            rng,
        )
        if heads is None:
            return None
        for (out, rows, _), classes in zip(places, heads, strict=True):
            out[:, rows] = classes
    return out_s, out_t


def _drawn_rows(groups: IntArray, rng: np.random.Generator) -> IntArray:
    """Return the rows of patients drawn with replacement, about as many rows as there are."""
    patients, numbers = np.unique(groups, return_inverse=True)
    times = np.bincount(rng.integers(0, len(patients), len(patients)), minlength=len(patients))
    rows = np.repeat(np.arange(len(groups)), times[numbers])
    if len(rows) > MAX_FOR_HEADS:
        rows = np.sort(rng.choice(rows, MAX_FOR_HEADS, replace=False))
    return rows
