"""Means and covariances under importance weights, and their distances between domains."""

from __future__ import annotations

from typing import Any

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
    return torch.where(total > 0, total.reciprocal(), 0.0)


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


def centred(x: Tensor, share: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return x (N, D) less its mean (D,) under weights that sum to 1, in ``out``, and that mean.

    The second pass removes what the first one's rounding left.
    """
    mean = share @ x
    z = torch.sub(x, mean, out=out)
    return z.sub_(share @ z), mean


def _covariance_root(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return A (N, D) with A'A the unbiased covariance, and what it was made of.

    A = diag(f) (x - m), f (N,); the last result says whether the covariance is defined.
    """
    total = weights.sum()
    defined = total > 1.0
    factor = torch.where(defined, weights / (total - 1.0), 0.0).sqrt()
    root, _ = centred(x, weights / total.clamp_min(torch.finfo(x.dtype).tiny))
    return root.mul_(factor[:, None]), factor, defined


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
    root, *_ = _covariance_root(x, as_weights(weights, x))
    return root.T @ root


class _CovarianceDistance(torch.autograd.Function):
    """||E||_F^2, E = A'A - B'B of covariance roots A = diag(f) (s - m_s) and B, with its gradient.

    That is 4 diag(f) A E on source rows, and minus the same of B on target rows: both means follow
    their rows, but sum_i f_i A_i = 0 makes their part vanish.
    """

    @staticmethod
    def forward(ctx: Any, source: Tensor, target: Tensor, ws: Tensor, wt: Tensor) -> Tensor:
        roots, factors, defined = _roots(source, target, ws, wt)
        difference = _difference(roots, len(source))
        if _by_rows(roots):  # rounding may leave it below 0
            distance = (difference * difference.T).sum().clamp_min(0.0)
        else:
            distance = torch.linalg.vector_norm(difference).square()
        ctx.save_for_backward(source, target, ws, wt, 4.0 * defined * factors, roots, difference)
        return torch.where(defined, distance, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        source, target, ws, wt, scale, roots, difference = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: it needs the inputs' graph
            roots = _roots(source, target, ws, wt)[0]
            difference = _difference(roots, len(source))
        along = difference @ roots if _by_rows(roots) else roots @ difference
        along.mul_((grads[0] * scale)[:, None])
        return along[: len(source)], along[len(source) :], None, None


def _roots(source: Tensor, target: Tensor, ws: Tensor, wt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the roots [A; B] (N + M, D), [f; -f] (N + M,), and whether both are defined."""
    a, f_a, a_defined = _covariance_root(source, ws)
    b, f_b, b_defined = _covariance_root(target, wt)
    return torch.cat([a, b]), torch.cat([f_a, -f_b]), a_defined & b_defined


def _by_rows(roots: Tensor) -> bool:
    """Return whether inner products of rows take fewer multiplications than covariances."""
    return roots.shape[0] < roots.shape[1]


def _difference(roots: Tensor, n: int) -> Tensor:
    """Return E = A'A - B'B (D, D), or H = [A; B] [A' -B'] with H [A; B] = [A; B] E.

    H_ij H_ji adds up to ||A'A - B'B||^2 = ||AA'||^2 - 2 ||AB'||^2 + ||BB'||^2.
    """
    if _by_rows(roots):
        products = roots @ roots.T
        products[:, n:].neg_()
        return products
    a, b = roots[:n], roots[n:]
    return (a.T @ a).addmm_(b.T, b, alpha=-1.0)


@full_precision
def covariance_distance(
    source: Tensor,
    target: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Return the squared Frobenius distance of two unbiased weighted covariances.

    ||C_s - C_t||_F^2, from D x D covariances or, for fewer rows than features, from inner products
    of rows (the same value); 0 where either covariance is undefined. It can be differentiated
    twice.  Paper: arXiv:1607.01719.

    Args:
        source: (N, D).
        target: (M, D).
        source_weights: (N,), at least 0.
        target_weights: (M,), at least 0.
    """
    distance: Tensor = _CovarianceDistance.apply(
        source, target, as_weights(source_weights, source), as_weights(target_weights, target)
    )
    return distance


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
