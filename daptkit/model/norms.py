"""Normalisation layers that keep running statistics, and passes under other statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from daptkit.method import NormLayer
from daptkit.model.network import AdaptNet

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Module path to mean (C,) and variance (C,) of what enters a layer."""


def norm_modules(net: AdaptNet) -> dict[str, nn.Module]:
    """Return the backbone's layers with running statistics, by their paths in the network.

    Such a layer is known by its buffers: BatchNorm of every kind, with a fused activation or
    without, and timm's frozen form of it, which is no BatchNorm to torch.
    """
    found = {}
    for name, module in net.backbone.named_modules(prefix="backbone"):
        kept = [getattr(module, key, None) for key in ("running_mean", "running_var")]
        if all(isinstance(value, Tensor) for value in kept) and hasattr(module, "eps"):
            found[name] = module
    return found


def norm_layers(net: AdaptNet) -> dict[str, NormLayer]:
    """Return what each of these layers normalises by in eval mode, in float64 on the CPU."""
    return {
        name: NormLayer(
            mean=module.get_buffer("running_mean").detach().cpu().double(),
            var=module.get_buffer("running_var").detach().cpu().double(),
            eps=float(module.eps),  # type: ignore[arg-type]
        )
        for name, module in norm_modules(net).items()
    }


@contextmanager
def normalised_by(net: AdaptNet, statistics: Statistics) -> Iterator[None]:
    """Let layers in eval mode normalise by other statistics in the block; the rest stays theirs.

    Weight, bias and fused activation of a layer are its own, whatever kind it is.

    Args:
        net: the network; its statistics are put back, to the bit.
        statistics: by paths of :func:`norm_modules`; nothing changes for layers left out.
    """
    if not statistics:
        yield
        return
    modules = norm_modules(net)
    buffers = [
        (modules[name].get_buffer(key), value)
        for name, pair in statistics.items()
        for key, value in zip(("running_mean", "running_var"), pair, strict=True)
    ]
    before = [buffer.clone() for buffer, _ in buffers]
    try:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for (buffer, _), value in zip(buffers, before, strict=True):
                buffer.copy_(value)
