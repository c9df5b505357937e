"""Soft and hard confusion matrices of a classifier on held-out source images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from daptkit.shift.arrays import FloatArray, as_labels, as_matrix, as_weights, one_hot


def conditional_confusion(
    predictions: npt.ArrayLike,
    labels: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    num_classes: int | None = None,
    pseudo_count: float = 0.0,
) -> FloatArray:
    """Return A[i, j] = P(prediction i | class j), (M, K), columns summing to 1.

    A[i, j] = (sum_{n: y_n = j} w_n f_i(x_n) + c / M) / (sum_{n: y_n = j} w_n + c), f the posterior
    (soft) or its arg max as an indicator (hard; see :func:`hard_predictions`). The column of a
    class without images is uniform, which says nothing of it.

    Args:
        predictions: (N, M) rows summing to 1; M = K outputs, or a finer partition.
        labels: (N,) class indices.
        weights: (N,), not negative; they matter within a class only.
        num_classes: K, by default M.
        pseudo_count: c, Laplace shrinkage towards the uniform column.

    Reference: Lipton, Wang, Smola 2018, arXiv:1802.03916.

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    f = as_matrix(predictions, "predictions")
    n, outputs = f.shape
    k = outputs if num_classes is None else num_classes
    y = as_labels(labels, n, k)
    mass = one_hot(y, k) * as_weights(weights, n)[:, None]
    sums = f.T @ mass + pseudo_count / outputs
    totals = mass.sum(axis=0) + pseudo_count
    empty = totals <= 0
    columns: FloatArray = sums / np.where(empty, 1.0, totals)
    columns[:, empty] = 1.0 / outputs
    return columns


def hard_predictions(posterior: npt.ArrayLike) -> FloatArray:
    """Return the arg max of each row as an indicator, (N, K).

    Args:
        posterior: (N, K), or logits.

    Raises:
        DataError: not a finite matrix.
    """
    p = as_matrix(posterior, "posterior")
    return one_hot(np.argmax(p, axis=1).astype(np.int64), p.shape[1])


def predicted_marginal(
    predictions: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> FloatArray:
    """Return mu_i = P(prediction i) = sum_n w_n f_i(x_n) / sum_n w_n, (M,).

    Args:
        predictions: (N, M) rows summing to 1.
        weights: (N,), not negative; ones if ``None``.

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    f = as_matrix(predictions, "predictions")
    w = as_weights(weights, len(f))
    return np.asarray(w @ f / w.sum(), dtype=np.float64)


def smallest_singular_value(confusion: npt.ArrayLike) -> float:
    """Return the smallest singular value of A: 1 for a perfect classifier, 0 for a blind one.

    Args:
        confusion: A, (M, K), M >= K.

    Raises:
        DataError: not a finite matrix.
    """
    return float(np.linalg.svd(as_matrix(confusion, "confusion"), compute_uv=False)[-1])
