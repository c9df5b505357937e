"""Maximum mean discrepancy under Gaussian kernels, with an analytic gradient."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from daptkit.nn.moments import as_weights, centred, reciprocal
from daptkit.nn.precision import full_precision

_MIN_BANDWIDTH = 1e-12


def _kernel_and_slope(z: Tensor, rate: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return K = sum_{i<count} exp(-2^i rate d) and dK/dd for squared distances d, both (N, N).

    Halving a bandwidth squares its kernel: one exponential serves all of them.
    """
    norms = z.square().sum(1)
    distances = torch.addmm(norms[:, None] + norms, z, z.T, alpha=-2.0).clamp_(min=0.0)
    power = distances.fill_diagonal_(0.0).mul_(-rate).exp_()
    kernel, slope = power.clone(), power.clone()
    for i in range(1, count):
        power.square_()
        kernel.add_(power)
        slope.add_(power, alpha=2.0**i)
    return kernel, slope.mul_(-rate)


class _ProductKernelMMD(torch.autograd.Function):
    """c'Kc for K the elementwise product of one kernel a layer, with its analytic gradient.

    With M_ij = c_i c_j dK_ij/dd_ij the gradient is 4 (diag(M 1) - M) z: one product a layer, and
    no graph through the kernels.
    """

    @staticmethod
    def forward(
        ctx: Any, c: Tensor, rates: Sequence[Tensor], counts: Sequence[int], *layers: Tensor
    ) -> Tensor:
        # Kernels depend on differences alone: centring changes no gradient and saves digits.
        layers = tuple(centred(x, c.abs()) for x in layers)
        pairs = [_kernel_and_slope(z, r, n) for z, r, n in zip(layers, rates, counts, strict=True)]
        grads = []
        for i, z in enumerate(layers):
            if not ctx.needs_input_grad[3 + i]:
                continue
            m = pairs[i][1].mul_(c[:, None]).mul_(c)
            for j, (kernel, _) in enumerate(pairs):
                if j != i:
                    m.mul_(kernel)
            grads.append((m.sum(1, keepdim=True) * z).sub_(m @ z).mul_(4.0))
        ctx.save_for_backward(*grads)
        product = functools.reduce(torch.mul, (kernel for kernel, _ in pairs))
        return (c @ (product @ c)).clamp_min(0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        layers = [grads[0] * next(saved) if need else None for need in ctx.needs_input_grad[3:]]
        return (None, None, None, *layers)


@full_precision
def joint_mmd2(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
    *,
    powers: Sequence[range],
    bandwidths: Sequence[float | None],
) -> Tensor:
    """Return the joint maximum mean discrepancy of several layers, squared (V-statistic).

    sum_ij c_i c_j prod_l sum_{k in powers_l} exp(-d_l(i,j) / (2 * 2^k * b_l)) over both domains,
    c = w_s / sum w_s on source rows and -w_t / sum w_t on target rows, d squared distances. b_l is
    the mean squared distance under |c| / 2, a constant for the gradient and floored, so collapsed
    features give 0. It is 0 where the weights of either domain sum to 0.
    Papers: arXiv:1605.06636, arXiv:1502.02791.

    Args:
        sources: layers of the source, each (N, D_l).
        targets: the same layers of the target, each (M, D_l).
        source_weights: (N,), at least 0.
        target_weights: (M,), at least 0.
        powers: for each layer consecutive integers k, at least one.
        bandwidths: for each layer b_l, or ``None`` for the mean squared distance.
    """
    ws = as_weights(source_weights, sources[0])
    wt = as_weights(target_weights, targets[0])
    c = torch.cat([ws * reciprocal(ws.sum()), -wt * reciprocal(wt.sum())])
    c = c * ((ws.sum() > 0) & (wt.sum() > 0))
    layers, rates = [], []
    for source, target, ks, bandwidth in zip(sources, targets, powers, bandwidths, strict=True):
        x = torch.cat([source, target])
        base = _mean_squared_distance(x, c) if bandwidth is None else x.new_full((), bandwidth)
        layers.append(x)
        rates.append(0.5 ** (max(ks) + 1) / base)
    counts = tuple(len(ks) for ks in powers)
    value: Tensor = _ProductKernelMMD.apply(c, rates, counts, *layers)
    return value


def _mean_squared_distance(x: Tensor, c: Tensor) -> Tensor:
    """Return sum_ij p_i p_j ||x_i - x_j||^2 = 2 sum_i p_i ||x_i - m||^2, p = |c| / 2, floored.

    The floor is the square of a few rounding steps of the features: below it distances are noise.
    """
    x, p = x.detach(), c.abs()
    spread = (p @ centred(x, p).square()).sum()
    size = (p @ x.square()).sum()
    return spread + (16.0 * torch.finfo(x.dtype).eps) ** 2 * size + _MIN_BANDWIDTH


def mmd2(
    source: Tensor,
    target: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
    *,
    powers: range = range(-3, 2),
) -> Tensor:
    """Return the squared maximum mean discrepancy under a sum of Gaussian kernels (V-statistic).

    sum_ij c_i c_j sum_k exp(-d_ij / (2 * 2^k * b)), :func:`joint_mmd2` of one layer; in
    [0, 2 * number of kernels].  Paper: arXiv:1502.02791.

    Args:
        source: (N, D).
        target: (M, D).
        source_weights: (N,), at least 0.
        target_weights: (M,), at least 0.
        powers: consecutive integers k: bandwidths are 2^k times the mean squared distance.
    """
    return joint_mmd2(
        (source,), (target,), source_weights, target_weights, powers=(powers,), bandwidths=(None,)
    )
