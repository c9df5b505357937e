"""Histogram matching of sites: a monotone map of levels from quantiles (doi:10.1109/42.836373)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from daptkit.method import FitContext, Method, TaskInfo
from daptkit_appearance.plugin import HistMatchOptions
from daptkit_appearance.sample import (
    MAX_CHANNELS,
    MIN_PIXELS,
    check_samples,
    is_grey,
    site_pixels,
)

LEVELS = 1020
"""Steps of the stored map: every level of 8 bits is one of its nodes."""
MIN_SPREAD = 0.02
"""Distance of the 5% and 95% quantiles below which a site is taken for constant."""

_STRICT = 1e-3


def level_map(source: Tensor, target: Tensor, quantiles: int = 256) -> Tensor | None:
    """Return the monotone map T of target levels to source levels, at 0, 1/1020, ..., 1.

    T is linear between the points (F_t^-1(p), F_s^-1(p)), p = (k + 1/2) / K, where target
    quantiles that are equal become one point with the mean of their source quantiles, and runs on
    to (0, 0) and (1, 1). A thousandth of the identity is mixed in: T rises strictly, so that no
    two levels become one.

    ``None`` where a site has fewer than 64 pixels or is about constant (5% and 95% quantiles less
    than 0.02 apart), since a map of a single level is arbitrary.

    Args:
        source: (P,) levels in [0, 1].
        target: (Q,) levels in [0, 1].
        quantiles: K.

    Reference: Nyul, Udupa, Zhang 2000, "New variants of a method of MRI scale standardization",
    doi:10.1109/42.836373 (piecewise linear map between landmarks of two histograms).
    """
    if min(len(source), len(target)) < MIN_PIXELS:
        return None
    p = (torch.arange(quantiles, dtype=torch.float64, device=source.device) + 0.5) / quantiles
    y, x = _quantiles(source.double(), p), _quantiles(target.double(), p)
    low, high = (int(quantiles * q) for q in (0.05, 0.95))
    if min(float(v[high] - v[low]) for v in (x, y)) < MIN_SPREAD:
        return None
    x, y = _distinct(x, y)
    ends = x.new_tensor([0.0, 1.0])
    if x[0] > 0:
        x, y = torch.cat([ends[:1], x]), torch.cat([ends[:1], y])
    if x[-1] < 1:
        x, y = torch.cat([x, ends[1:]]), torch.cat([y, ends[1:]])
    grid = torch.linspace(0.0, 1.0, LEVELS + 1, dtype=torch.float64, device=x.device)
    right = torch.searchsorted(x, grid).clamp(1, len(x) - 1)
    x0, x1, y0, y1 = x[right - 1], x[right], y[right - 1], y[right]
    mapped = y0 + (y1 - y0) * (grid - x0) / (x1 - x0)
    return (1 - _STRICT) * mapped + _STRICT * grid


def map_levels(images: Tensor, table: Tensor) -> Tensor:
    """Return images whose levels went through a map, linear between its nodes.

    Args:
        images: (N, C, H, W) in [0, 1].
        table: (C, L + 1), of each channel its map at 0, 1/L, ..., 1.
    """
    steps = table.shape[1] - 1
    place = images * steps
    node = place.detach().floor().clamp(0, steps - 1)
    channel = torch.arange(len(table), device=table.device).view(1, -1, 1, 1) * (steps + 1)
    index = node.long() + channel
    left, right = table.take(index), table.take(index + 1)
    return left + (place - node) * (right - left)


class HistMatch(Method):
    """Give target images the source site's distribution of levels, channel by channel.

    Args:
        options: see :class:`daptkit_appearance.plugin.HistMatchOptions`.
        task: not used.
    """

    options: HistMatchOptions
    table: Tensor
    left_alone: Tensor

    def __init__(self, options: HistMatchOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        identity = torch.linspace(0.0, 1.0, LEVELS + 1, dtype=torch.float64).float()
        self.register_buffer("table", identity.repeat(MAX_CHANNELS, 1))
        # Of each channel whether a site was about constant; -1 where there is no such channel.
        self.register_buffer("left_alone", torch.full((MAX_CHANNELS,), -1, dtype=torch.int64))

    @torch.no_grad()
    def fit_images(self, source: Tensor, target: Tensor) -> None:
        """Work out the map of each channel from samples of both sites."""
        check_samples("histmatch", source, target)
        grey = is_grey(source) and is_grey(target)
        s, t = (
            site_pixels(images, grey=grey, masked=self.options.foreground)
            for images in (source, target)
        )
        for channel in range(source.shape[1]):
            found = level_map(s[:, channel], t[:, channel], self.options.quantiles)
            self.left_alone[channel] = int(found is None)
            if found is not None:
                self.table[channel].copy_(found)

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        """Return target images (N, C, H, W) with the source's levels; others as they are."""
        if domain != "target" or self.options.strength == 0:
            return images
        x = images.float()
        mapped = map_levels(x, self.table[: x.shape[1]])
        return (x + self.options.strength * (mapped - x)).clamp(0.0, 1.0)

    def on_fit_start(self, ctx: FitContext) -> None:
        """Tell of channels that are left as they are."""
        constant = [c for c, flag in enumerate(self.left_alone.tolist()) if flag == 1]
        if constant:
            ctx.note(
                f"histmatch: left channel {', '.join(map(str, constant))} of the target's images as"
                " it is: a site's levels there are about constant, or there are too few pixels."
            )

    def report(self) -> dict[str, Any]:
        """Return the mean change of a level in each channel and which were left alone."""
        flags = [flag for flag in self.left_alone.tolist() if flag >= 0]
        grid = torch.linspace(0.0, 1.0, LEVELS + 1, device=self.table.device)
        change = (self.table - grid).abs().mean(1)
        return {
            "mean_change_of_levels": [round(v, 4) for v in change[: len(flags)].tolist()],
            "channels_left_alone": [c for c, flag in enumerate(flags) if flag],
        }


def _quantiles(values: Tensor, p: Tensor) -> Tensor:
    """Return quantiles, linear between order statistics; torch's own takes no large input."""
    ordered = values.sort().values
    place = p * (len(ordered) - 1)
    left = place.floor().long()
    right = (left + 1).clamp(max=len(ordered) - 1)
    return ordered[left] + (place - left) * (ordered[right] - ordered[left])


def _distinct(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct values of ascending x and the mean y of each."""
    values, where, counts = torch.unique_consecutive(x, return_inverse=True, return_counts=True)
    sums = torch.zeros_like(values).index_add_(0, where, y)
    return values, sums / counts


__all__ = ["HistMatch", "level_map", "map_levels"]
