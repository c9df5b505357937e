"""Moments of what enters the layers of a model, over a whole split, without keeping any of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from daptkit.data import to_float
from daptkit.model import AdaptNet
from daptkit.model.network import evaluating
from daptkit.model.norms import Statistics, norm_modules, normalised_by
from daptkit.train.device import Precision
from daptkit.train.domains import Domain, Rows
from daptkit.train.world import ALONE, World

TRUNK = "trunk"
"""The backbone's pooled output, beside the paths of layers."""

Moments = dict[str, tuple[Tensor, Tensor]]
"""Layer to mean (C,) and variance (C,), float64 on the CPU."""


@torch.no_grad()
def input_moments(
    net: AdaptNet,
    domain: Domain,
    rows: Rows,
    *,
    layers: tuple[str, ...],
    weights: Tensor | None = None,
    statistics: Statistics | None = None,
    precision: Precision,
    world: World = ALONE,
) -> Moments:
    """Return weighted mean and variance, by channel, of what enters layers in eval mode.

    m = sum_i w_i m_i / W,  v = sum_i w_i (v_i + (m_i - m)^2) / W,  W = sum_i w_i

    with mean m_i and variance v_i of image i over its places. An image's own moments depend on no
    other image, and their sums are merged in float64 (Chan, Golub and LeVeque 1983), so that only
    rounding knows how many images pass at a time, and not even that how many processes share them.

    Args:
        net: the model, on the device of ``precision``; the mode of each module is restored.
        domain: images or cached trunk features.
        rows: (N,) rows of the domain.
        layers: paths of :func:`daptkit.model.norm_modules`, or ``"trunk"``.
        weights: (N,), at least 0; ones if not given.
        statistics: what layers normalise by in this pass in place of their own.
        precision: device and mixed precision.
        world: processes that share the work; each gets the same result.

    Raises:
        ValueError: a layer is unknown, or not run on cached features; no image has any weight.
    """
    modules = {} if domain.trunk is not None else norm_modules(net)
    unknown = [name for name in layers if name != TRUNK and name not in modules]
    if unknown:
        raise ValueError(f"no normalisation layer '{unknown[0]}' is run on these images")
    ones = torch.ones(len(rows), dtype=torch.float64)
    w = ones if weights is None else weights.detach().cpu().double()
    if float(w.sum()) <= 0:
        raise ValueError("no image has a positive weight")
    chunks = list(domain.chunks(rows))
    shares = torch.split(w, [len(chunk) for chunk in chunks])
    parts = list(zip(chunks, shares, strict=True))
    own = world.own(parts)
    found: dict[str, list[Tensor]] = {}
    with evaluating(net), normalised_by(net, statistics or {}):
        inputs = domain.inputs(chunk for chunk, _ in own)
        for given, (_, share) in zip(inputs, own, strict=True):
            with _observed({n: m for n, m in modules.items() if n in layers}) as seen:
                if domain.trunk is not None:
                    trunk = given
                else:
                    with precision.autocast():
                        trunk = net.trunk(to_float(given.to(precision.device)))
            if TRUNK in layers:
                seen[TRUNK] = [_of_images(trunk)]
            for name, observed in seen.items():
                found.setdefault(name, []).append(_sums(observed, share)[None])
    whole = world.joined({name: torch.cat(sums) for name, sums in found.items()}, [1] * len(chunks))
    return {name: _merged(whole[name]) for name in layers if name in whole}


@contextmanager
def _observed(modules: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Collect the moments of each image at the inputs of layers while the block runs."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def recorder(name: str) -> Callable[[nn.Module, Any], None]:
        def record(module: nn.Module, given: Any) -> None:
            seen.setdefault(name, []).append(_of_images(given[0]))

        return record

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(recorder(name)).remove)
        yield seen


def _of_images(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance over the places of (N, C, ...), (N, C) each."""
    x = x if x.dtype == torch.float64 else x.float()
    if x.dim() == 2:
        mean = x.cpu().double()
        return mean, torch.zeros_like(mean)
    places = tuple(range(2, x.dim()))
    mean = x.mean(places, keepdim=True)
    # In two passes, which are exact at large means, and five times as fast as torch.var_mean.
    var = (x - mean).square_().mean(places)
    return mean.flatten(1).cpu().double(), var.cpu().double()


def _sums(observed: list[tuple[Tensor, Tensor]], weights: Tensor) -> Tensor:
    """Return total weight, mean and weighted squares about it of a chunk, (3, C).

    A layer that is passed several times sees each image as often.
    """
    means, variances = (torch.cat(parts) for parts in zip(*observed, strict=True))
    w = weights.repeat(len(observed))
    total = w.sum()
    mean = w @ means / total.clamp_min(torch.finfo(w.dtype).tiny)
    squares = w @ (variances + (means - mean).square())
    return torch.stack([total.expand_as(mean), mean, squares])


def _merged(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of all chunks from their sums, (chunks, 3, C)."""
    total, mean, squares = sums[0]
    for more, other, spread in sums[1:]:
        both = total + more
        share = more / both.clamp_min(torch.finfo(both.dtype).tiny)
        gap = other - mean
        mean = mean + gap * share
        squares = squares + spread + gap.square() * total * share
        total = both
    return mean, squares / total
