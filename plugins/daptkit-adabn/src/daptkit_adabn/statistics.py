"""What a layer normalises the target by, so that it gives out what it gives out for the source."""

from __future__ import annotations

import torch
from torch import Tensor

from daptkit.method import NormLayer

CONSTANT = 1e-4
"""Share of the mean variance of all channels below which one counts as constant."""

Moments = tuple[Tensor, Tensor]
"""Mean and variance by channel, (C,) each."""


def deviations(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return by what each domain is divided: its own deviation, where it has one.

    A channel that is constant in one domain says nothing of that domain's scale. Both are then
    divided by the larger deviation of the two, or by 1 where neither varies, so that rounding is
    never blown up.

    Args:
        source: (C,) variances.
        target: (C,) variances.
    """
    both = torch.stack([source, target])  # (2, C)
    constant = (both <= CONSTANT * both.mean(1, keepdim=True)).any(0)
    larger = both.amax(0).sqrt()
    shared = torch.where(larger > 0, larger, torch.ones_like(larger))
    own = torch.where(constant, shared, both.sqrt())
    return own[0], own[1]


def matched(layer: NormLayer, source: Moments, target: Moments, strength: float = 1.0) -> Moments:
    """Return what a layer normalises the target by, for outputs with the source's moments.

    With the layer's own mean m and variance v, and the moments of its inputs,

        m' = m_t - (m_s - m) r,   v' + eps = (v + eps) r^2,   r = s_t / s_s

    An input at z deviations from its domain's mean leaves the layer as the same number at either
    site. Where m and v are the source's moments, m' and v' are the target's, as published (Li et
    al. 2016, arXiv:1603.04779); where both domains have the same moments nothing changes, whatever
    m and v are.

    Args:
        layer: the layer's statistics, (C,).
        source: moments of what it is fed of the source.
        target: moments of what it is fed of the target.
        strength: 0 for the layer's own statistics, 1 for those above.

    Returns:
        Mean and variance, (C,) each; a variance is at least 0.
    """
    s, t = deviations(source[1], target[1])
    ratio = t / s
    mean = target[0] - (source[0] - layer.mean) * ratio
    var = ((layer.var + layer.eps) * ratio.square() - layer.eps).clamp_min(0.0)
    return torch.lerp(layer.mean, mean, strength), torch.lerp(layer.var, var, strength)


def change(layer: NormLayer, statistics: Moments) -> float:
    """Return how far statistics are from a layer's own: the mean of |m' - m| / sqrt(v + eps)."""
    return float(((statistics[0] - layer.mean).abs() / (layer.var + layer.eps).sqrt()).mean())
