"""Maximum mean discrepancy under Gaussian kernels, with an analytic gradient."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from daptkit.nn.moments import as_weights, centred, zero_unless
from daptkit.nn.precision import full_precision

_MIN_BANDWIDTH = 1e-12
_CPU_TILE, _DEVICE_TILE = 512, 4096


class _Layer:
    """Rows (N, D) of both domains in one layer, their kernel, and the gradient as it grows.

    The kernel is sum_{i<count} exp(2^i rate d) of squared distances d, rate negative. It depends on
    differences alone: centring the rows, in place, changes no gradient and saves digits.
    """

    def __init__(self, x: Tensor, share: Tensor, powers: range, bandwidth: float | None) -> None:
        self.z, mean = centred(x, share, out=x)
        self.norms = torch.linalg.vector_norm(self.z, dim=1).square()  # (N,)
        if bandwidth is None:
            base = _mean_squared_distance(self.norms, mean, share)
        else:
            base = share.new_full((), bandwidth)
        self.count = len(powers)
        self.rate = -(0.5 ** (max(powers) + 1)) / base
        self.sums = torch.zeros_like(share)
        self.gradient = torch.zeros_like(x)

    def kernel_and_slope(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Return the kernel k and (dk/dd) / rate of a tile of pairs, both (R, C).

        Halving a bandwidth squares its kernel: one exponential serves all of them.
        """
        sums = self.norms[rows, None] + self.norms[columns]
        distances = sums.addmm_(self.z[rows], self.z[columns].T, alpha=-2.0).clamp_(min=0.0)
        if rows == columns:
            distances.fill_diagonal_(0.0)
        power = distances.mul_(self.rate).exp_()
        kernel, slope = power.clone(), power.clone()
        for i in range(1, self.count):
            power.square_()
            kernel.add_(power)
            slope.add_(power, alpha=2.0**i)
        return kernel, slope

    def add_gradient(self, m: Tensor, rows: slice, columns: slice) -> None:
        """Add a tile of M - diag(M 1), M (N, N) symmetric, times z to the gradient."""
        self.sums[rows] += m.sum(1)
        if rows == columns:  # the last tile of these rows: their sums are complete
            m.diagonal().sub_(self.sums[rows])
        else:
            self.sums[columns] += m.sum(0)
            self.gradient[columns].addmm_(m.T, self.z[rows])
        self.gradient[rows].addmm_(m, self.z[columns])


def _mean_squared_distance(norms: Tensor, mean: Tensor, share: Tensor) -> Tensor:
    """Return sum_ij p_i p_j ||x_i - x_j||^2 = 2 sum_i p_i ||x_i - m||^2, floored; p the shares.

    The floor is the square of a few rounding steps of the features: below it distances are noise.
    """
    step = (16.0 * torch.finfo(norms.dtype).eps) ** 2
    spread = share @ norms
    return 2.0 * (spread + step * (spread + mean @ mean)) + _MIN_BANDWIDTH


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator,unused-ignore]
def _tile_size(on_cpu: bool) -> int:
    """Return the rows of a tile of pairs.

    A tile of one thread stays in its core's cache. Several threads wait for each other after every
    operation, and a device starts a kernel for it: both want fewer, larger tiles.
    """
    return _CPU_TILE * torch.get_num_threads() if on_cpu else _DEVICE_TILE


def _tiles(n: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield the tiles on and above the diagonal of n x n pairs, that on it last of its rows."""
    for i in range(0, n, size):
        for j in reversed(range(i, n, size)):
            yield slice(i, i + size), slice(j, j + size)


class _ProductKernelMMD(torch.autograd.Function):
    """c'Kc for K the elementwise product of one kernel a layer, with its analytic gradient.

    With M_ij = -4 c_i c_j dK_ij/dd_ij the gradient is (M - diag(M 1)) z: one product a layer, and
    no graph through the kernels. K and M are symmetric: half of their tiles are computed, none is
    kept. There is no second derivative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        c: Tensor,
        powers: Sequence[range],
        bandwidths: Sequence[float | None],
        *features: Tensor,
    ) -> Tensor:
        pairs = zip(features[::2], features[1::2], powers, bandwidths, strict=True)
        share = 0.5 * c.abs()
        layers = [_Layer(torch.cat([s, t]), share, ks, b) for s, t, ks, b in pairs]
        factors = [-4.0 * layer.rate * c for layer in layers]
        needs = ctx.needs_input_grad[3:]
        needed = [any(pair) for pair in zip(needs[::2], needs[1::2], strict=True)]
        value = c.new_zeros(())
        for rows, columns in _tiles(len(c), _tile_size(c.device.type == "cpu")):
            kernels, slopes = zip(
                *(layer.kernel_and_slope(rows, columns) for layer in layers), strict=True
            )
            for i, layer in enumerate(layers):
                if needed[i]:
                    m = slopes[i].mul_(factors[i][rows, None]).mul_(c[columns])
                    for other in kernels[:i] + kernels[i + 1 :]:
                        m.mul_(other)
                    layer.add_gradient(m, rows, columns)
            product = functools.reduce(torch.mul, kernels)
            value.add_(c[rows] @ (product @ c[columns]), alpha=1.0 if rows == columns else 2.0)
        ctx.save_for_backward(*(layer.gradient for layer in layers))
        ctx.n_source = len(features[0])
        return value.clamp_min(0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        halves = [g for x in ctx.saved_tensors for g in (x[: ctx.n_source], x[ctx.n_source :])]
        needed = zip(halves, ctx.needs_input_grad[3:], strict=True)
        return (None, None, None, *(grads[0] * half if need else None for half, need in needed))


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
    features give 0. It is 0 where the weights of either domain sum to 0. There is no second
    derivative, and no matrix of all pairs in memory.
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
    totals = ws.sum(), wt.sum()
    c = torch.cat([ws / totals[0], -wt / totals[1]])
    c = zero_unless(torch.minimum(*totals) > 0, c)
    layers = [x for pair in zip(sources, targets, strict=True) for x in pair]
    value: Tensor = _ProductKernelMMD.apply(c, powers, bandwidths, *layers)
    return value


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
