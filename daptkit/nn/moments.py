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


def zero_unless(defined: Tensor, values: Tensor) -> Tensor:
    """Return values where a mask that broadcasts with them is true, and 0 elsewhere.

    ``torch.where`` copies the 0 to a GPU, and waits there for all the work in flight.
    """
    return values.masked_fill(defined.logical_not(), 0.0)


def reciprocal(total: Tensor) -> Tensor:
    """Return 1 / total where total is positive and 0 elsewhere."""
    return zero_unless(total > 0, total.reciprocal())


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
    factor = zero_unless(defined, weights / (total - 1.0)).sqrt()
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
        a, f_a, a_defined = _covariance_root(source, ws)
        b, f_b, b_defined = _covariance_root(target, wt)
        defined = a_defined & b_defined
        products = _products(a, b)
        norms = [torch.linalg.vector_norm(x).square() for x in products]
        # ||A'A - B'B||^2 = ||AA'||^2 - 2 ||AB'||^2 + ||BB'||^2; rounding may leave it below 0.
        distance = norms[0] if len(norms) == 1 else norms[0] - 2.0 * norms[1] + norms[2]
        scale = 4.0 * defined
        ctx.save_for_backward(source, target, ws, wt, scale * f_a, scale * f_b, a, b, *products)
        return zero_unless(defined, distance.clamp_min(0.0))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        source, target, ws, wt, scale_a, scale_b, a, b, *products = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: it needs the inputs' graph
            a, b = _covariance_root(source, ws)[0], _covariance_root(target, wt)[0]
            products = _products(a, b)
        if len(products) == 1:
            along_a, along_b = a @ products[0], b @ products[0]
        else:
            aa, ab, bb = products
            along_a = (aa @ a).addmm_(ab, b, alpha=-1.0)
            along_b = (ab.T @ a).addmm_(bb, b, alpha=-1.0)
        along_a.mul_((grads[0] * scale_a)[:, None])
        along_b.mul_((-grads[0] * scale_b)[:, None])
        return along_a, along_b, None, None


def _products(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Return A'A - B'B (D, D), or AA', AB' and BB' where they take fewer multiplications."""
    rows, features = a.shape[0] + b.shape[0], a.shape[1]
    # Of forward and backward together: each gradient is a product with a root again.
    if 2 * rows**2 - a.shape[0] * b.shape[0] < 2 * rows * features:
        return a @ a.T, a @ b.T, b @ b.T
    return ((a.T @ a).addmm_(b.T, b, alpha=-1.0),)


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
    return zero_unless((ws.sum() > 0) & (wt.sum() > 0), gap.square().sum())
