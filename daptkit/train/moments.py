"""Moments of what enters the layers of a model, over a whole split, without keeping any of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from daptkit.data import to_float
from daptkit.model import AdaptNet
from daptkit.model.network import evaluating
from daptkit.model.norms import Statistics, norm_layers, norm_modules, normalised_by
from daptkit.train.device import Precision
from daptkit.train.domains import Domain, Rows
from daptkit.train.guard import is_out_of_memory
from daptkit.train.world import ALONE, World

TRUNK = "trunk"
"""The backbone's pooled output, beside the paths of layers."""

Choose = Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From a layer's path, mean and variance (C,) of what it is fed to what it normalises by."""

AT_ONCE = 4
"""Forwards of a whole-split pass whose images may pass as one, where memory allows it."""

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
    Of a layer that is run several times in a forward, the first time counts.

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
    watched = {name: module for name, module in modules.items() if name in layers}
    chunks = list(domain.chunks(rows))
    shares = torch.split(_shares(weights, len(rows)), [len(chunk) for chunk in chunks])
    parts = list(zip(chunks, shares, strict=True))
    own = world.own(parts)
    found: dict[str, list[Tensor]] = {}
    with evaluating(net), normalised_by(net, statistics or {}):
        inputs = domain.inputs(chunk for chunk, _ in own)
        for given, (_, share) in zip(inputs, own, strict=True):
            seen: dict[str, tuple[Tensor, Tensor]] = {}

            def see(name: str, x: Tensor, seen: dict[str, Any] = seen) -> None:
                seen.setdefault(name, _of_images(x))
                if len(seen) == len(layers):
                    raise _Reached

            with contextlib.suppress(_Reached), precision.autocast(), _fed(watched, see):
                fed = domain.trunk is None
                see(TRUNK, net.trunk(to_float(given.to(precision.device))) if fed else given)
            for name in layers:
                if name in seen:
                    found.setdefault(name, []).append(_sums(*seen[name], share)[None])
    whole = world.joined({name: torch.cat(sums) for name, sums in found.items()}, [1] * len(chunks))
    return {name: _merged(whole[name]) for name in layers if name in whole}


@torch.no_grad()
def chained_statistics(
    net: AdaptNet,
    domain: Domain,
    rows: Rows,
    *,
    choose: Choose,
    weights: Tensor | None = None,
    precision: Precision,
    world: World = ALONE,
) -> Statistics:
    """Return what each layer normalises by, chosen where the layers before it are chosen.

    What a layer is fed depends on the statistics of all layers before it, so each is chosen in the
    order in which they run, from moments as of :func:`input_moments`. Where all images fit into
    one forward each layer chooses as it is reached. Where not, every layer costs a pass over the
    images that ends there. The outcome is the same but for rounding.

    Choosing for all layers at once and repeating it would not do: until the last layer is right
    the later ones move by many deviations from pass to pass.

    Args:
        net: the model; its statistics and the mode of each module are restored.
        domain: images.
        rows: (N,) rows of the domain.
        choose: what a layer normalises by; asked once for each.
        weights: (N,), at least 0; ones if not given.
        precision: device and mixed precision.
        world: processes that share the work; each gets the same result.
    """
    if len(rows) <= AT_ONCE * domain.chunk:
        arguments = (net, domain, rows, choose, _shares(weights, len(rows)), precision)
        found = world.first(lambda: _in_one_forward(*arguments))
        if found is not None:
            return found
    order: list[str] = []
    with evaluating(net), _fed(norm_modules(net), lambda name, x: order.append(name)):
        net.trunk(to_float(next(iter(domain.inputs(iter([rows[:1]])))).to(precision.device)))
    chosen: dict[str, tuple[Tensor, Tensor]] = {}
    for name in dict.fromkeys(order):
        moments = input_moments(
            net,
            domain,
            rows,
            layers=(name,),
            weights=weights,
            statistics=chosen,
            precision=precision,
            world=world,
        )
        chosen[name] = choose(name, *moments[name])
    return chosen


def _in_one_forward(
    net: AdaptNet,
    domain: Domain,
    rows: Rows,
    choose: Choose,
    shares: Tensor,
    precision: Precision,
) -> Statistics | None:
    """Let each layer choose as it is reached; ``None`` where memory does not suffice."""
    modules = norm_modules(net)
    own = {name: (layer.mean, layer.var) for name, layer in norm_layers(net).items()}
    chosen: dict[str, tuple[Tensor, Tensor]] = {}

    def see(name: str, x: Tensor) -> None:
        if name not in chosen:
            chosen[name] = choose(name, *_merged(_sums(*_of_images(x), shares)[None]))
            for key, value in zip(("running_mean", "running_var"), chosen[name], strict=True):
                modules[name].get_buffer(key).copy_(value)

    try:
        images = to_float(next(iter(domain.inputs(iter([rows])))).to(precision.device))
        with evaluating(net), normalised_by(net, own), precision.autocast(), _fed(modules, see):
            net.trunk(images)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    return chosen


class _Reached(Exception):
    """Ends a forward behind the last layer that is looked at."""


@contextmanager
def _fed(modules: dict[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``see`` with path and input of each layer before it is run in the block."""

    def hook(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, given: see(name, given[0])

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(hook(name)).remove)
        yield


def _shares(weights: Tensor | None, n: int) -> Tensor:
    """Return weights in float64, ones for ``None``."""
    w = torch.ones(n) if weights is None else weights.detach().cpu()
    if float(w.sum()) <= 0:
        raise ValueError("no image has a positive weight")
    return w.double()


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


def _sums(means: Tensor, variances: Tensor, w: Tensor) -> Tensor:
    """Return total weight, mean and weighted squares about it, (3, C), of images (N, C)."""
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
