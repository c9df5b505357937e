"""Means and covariances under importance weights, and their distances between domains."""

from __future__ import annotations

import torch
from torch import Tensor

from daptkit.nn.precision import full_precision


def as_weights(weights: Tensor | None, rows: Tensor) -> Tensor:
    """Return weights of the rows' type without a gradient, ones for ``None``."""
    if weights is None:
        return rows.new_ones(rows.shape[0])
    return weights.detach().to(rows.dtype)


def reciprocal(total: Tensor) -> Tensor:
    """Return 1 / total where total is positive and 0 elsewhere."""
    positive = total > 0
    return torch.where(positive, 1.0 / torch.where(positive, total, 1.0), 0.0)


@full_precision
def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over rows under importance weights.

    sum_i w_i v_i / sum_i w_i, and 0 where the weights sum to 0.

    Args:
        values: (N,) or (N, D).
        weights: (N,), at least 0.

    Returns:
        Scalar or (D,).
    """
    w = as_weights(weights, values)
    return (w @ values) * reciprocal(w.sum())


def centred(x: Tensor, weights: Tensor) -> Tensor:
    """Subtract the weighted mean; the second pass removes what the first one's rounding left."""
    share = weights * reciprocal(weights.sum())
    x = x - share @ x
    return x - share @ x


def _covariance_root(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (N, D) with A'A the unbiased covariance, and whether that is defined."""
    degrees = weights.sum() - 1.0
    root = centred(x, weights) * (weights * reciprocal(degrees)).sqrt()[:, None]
    return root, degrees > 0


@full_precision
def weighted_covariance(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the unbiased covariance, each weight counting as that many repetitions of its row.

    C = sum_i w_i (x_i - m)(x_i - m)' / (sum_i w_i - 1) with the weighted mean m; 0 where the
    weights sum to 1 or less. Centred before it is squared, so exact at large means.

    Args:
        x: (N, D).
        weights: (N,), at least 0.

    Returns:
        (D, D).
    """
    root, _ = _covariance_root(x, as_weights(weights, x))
    return root.T @ root


@full_precision
def covariance_distance(
    source: Tensor,
    target: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Return the squared Frobenius distance of two unbiased weighted covariances.

    ||C_s - C_t||_F^2, from D x D covariances or, for fewer rows than features, from inner products
    of rows (the same value); 0 where either covariance is undefined.  Paper: arXiv:1607.01719.

    Args:
        source: (N, D).
        target: (M, D).
        source_weights: (N,), at least 0.
        target_weights: (M,), at least 0.
    """
    a, a_defined = _covariance_root(source, as_weights(source_weights, source))
    b, b_defined = _covariance_root(target, as_weights(target_weights, target))
    if 3 * (a.shape[0] + b.shape[0]) < 4 * a.shape[1]:  # where the two cost the same
        # ||A'A - B'B||^2 = ||AA'||^2 - 2 ||AB'||^2 + ||BB'||^2; rounding may leave it below 0.
        squares = [(x @ y.T).square().sum() for x, y in ((a, a), (a, b), (b, b))]
        distance = (squares[0] - 2.0 * squares[1] + squares[2]).clamp_min(0.0)
    else:
        distance = (a.T @ a - b.T @ b).square().sum()
    return torch.where(a_defined & b_defined, distance, 0.0)


@full_precision
def mean_distance(
    source: Tensor,
    target: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Return the squared Euclidean distance of two weighted means.

    ||m_s - m_t||^2, and 0 where the weights of either domain sum to 0.

    Args:
        source: (N, D).
        target: (M, D).
        source_weights: (N,), at least 0.
        target_weights: (M,), at least 0.
    """
    ws, wt = as_weights(source_weights, source), as_weights(target_weights, target)
    origin = target.detach().mean(0)  # a common shift: digits are not spent on a large mean
    gap = weighted_mean(source - origin, ws) - weighted_mean(target - origin, wt)
    return torch.where((ws.sum() > 0) & (wt.sum() > 0), gap.square().sum(), 0.0)
