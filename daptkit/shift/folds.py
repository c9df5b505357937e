"""Folds that never split a patient."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from daptkit.shift.arrays import IntArray


def grouped_folds(labels: IntArray, groups: IntArray, folds: int, seed: int = 0) -> IntArray:
    """Return the fold of each row, (N,), no group split, classes spread as evenly as groups allow.

    Args:
        labels: (N,) class indices.
        groups: (N,) patients, at least ``folds`` of them.
        folds: at least 2.
        seed: of the order of patients.
    """
    folder = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    # Where every class has fewer images than folds nothing can be spread.
    strata = labels if np.bincount(labels).max() >= folds else np.zeros_like(labels)
    fold = np.zeros(len(labels), dtype=np.int64)
    with warnings.catch_warnings():
        # A class with fewer images than folds is absent from some of them, as it has to be.
        warnings.simplefilter("ignore", UserWarning)
        split = folder.split(np.zeros((len(labels), 1)), strata, groups)
        for k, (_, test) in enumerate(split):
            fold[test] = k
    return fold
