"""Checked conversion of logits, labels, weights, groups and priors to float64 and int64 arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from daptkit.errors import DataError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def as_matrix(values: npt.ArrayLike, name: str = "logits") -> FloatArray:
    """Return ``values`` as a finite float64 matrix (N, K).

    Raises:
        DataError: not a matrix, no row, or a value that is NaN or infinite.
    """
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] == 0 or matrix.shape[1] == 0:
        raise DataError(f"{name} must be a matrix with at least one row, not {matrix.shape}.")
    if not np.isfinite(matrix).all():
        bad = int((~np.isfinite(matrix).all(axis=1)).sum())
        raise DataError(
            f"{name} of {bad} of {len(matrix)} images are NaN or infinite; "
            "train with a lower learning rate or without --amp."
        )
    return matrix


def as_labels(labels: npt.ArrayLike, n: int, num_classes: int) -> IntArray:
    """Return ``labels`` as int64 (N,) in 0 ... K-1.

    Raises:
        DataError: wrong length, or a label outside the classes.
    """
    array = np.asarray(labels, dtype=np.int64)
    if array.shape != (n,):
        raise DataError(f"there are {n} rows of logits, but labels of shape {array.shape}.")
    if array.size and (array.min() < 0 or array.max() >= num_classes):
        raise DataError(f"labels must lie in 0..{num_classes - 1}, the columns of the logits.")
    return array


def as_weights(weights: npt.ArrayLike | None, n: int) -> FloatArray:
    """Return non-negative weights (N,), ones for ``None``.

    Raises:
        DataError: wrong length, negative or non-finite, or all zero.
    """
    if weights is None:
        return np.ones(n)
    array = np.asarray(weights, dtype=np.float64)
    if array.shape != (n,):
        raise DataError(f"there are {n} images, but weights of shape {array.shape}.")
    if not np.isfinite(array).all() or (array < 0).any() or array.sum() <= 0:
        raise DataError("weights must be finite, not negative and not all zero.")
    return array


def as_groups(groups: npt.ArrayLike | None, n: int) -> IntArray:
    """Return groups renumbered to 0 ... G-1, (N,); one group per image for ``None``.

    Raises:
        DataError: wrong length.
    """
    if groups is None:
        return np.arange(n, dtype=np.int64)
    array = np.asarray(groups)
    if array.shape != (n,):
        raise DataError(f"there are {n} images, but groups of shape {array.shape}.")
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def as_prior(prior: npt.ArrayLike, num_classes: int, name: str = "prior") -> FloatArray:
    """Return a probability vector (K,), scaled to sum to 1.

    Raises:
        DataError: wrong length, negative or non-finite, or all zero.
    """
    array = np.asarray(prior, dtype=np.float64)
    if array.shape != (num_classes,):
        raise DataError(f"{name} must have {num_classes} values, not shape {array.shape}.")
    if not np.isfinite(array).all() or (array < 0).any() or array.sum() <= 0:
        raise DataError(f"{name} must be finite, not negative and not all zero.")
    return np.asarray(array / array.sum(), dtype=np.float64)


def floored(prior: FloatArray, n: float) -> FloatArray:
    """Return max(prior, min(1/(2n), 1/(10K))), scaled to sum to 1, for a prior from ``n`` images.

    A sample of n images cannot tell a class of prior below 1/(2n) from an absent one.
    """
    floor = min(0.5 / max(n, 1.0), 0.1 / len(prior))
    lifted = np.maximum(prior, floor)
    return np.asarray(lifted / lifted.sum(), dtype=np.float64)


def one_hot(indices: IntArray, num_classes: int) -> FloatArray:
    """Return the (N, K) indicator matrix of class indices (N,)."""
    matrix = np.zeros((len(indices), num_classes))
    matrix[np.arange(len(indices)), indices] = 1.0
    return matrix


def effective_sample_size(weights: npt.ArrayLike) -> float:
    """Return the effective sample size (sum w)^2 / sum w^2; 0 for weights that are all zero.

    Args:
        weights: (N,), not negative.

    Reference: Kish 1965, "Survey Sampling".
    """
    w = np.asarray(weights, dtype=np.float64)
    squares = float((w * w).sum())
    return float(w.sum()) ** 2 / squares if squares > 0 else 0.0
