"""Two stains of a site by Macenko's method, and the map from one site's stains to another's.

Optical density is a mixture, D = S c, of two stains' colours S (3, 2) and amounts c: haematoxylin
and eosin, or the azure and eosin of Romanowsky stains (Wright, Giemsa, May-Gruenwald).
Macenko et al. 2009, doi:10.1109/ISBI.2009.5193250.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from daptkit_appearance.sample import MIN_PIXELS

MIN_DENSITY = 0.15
"""Density above the slide's own, in every channel, from which a pixel counts as stained."""

_ANGLE = 0.01
_MOST = 0.99
_LEAST_ANGLE = 0.05
_LEAST_AMOUNT = 0.05
_WHITE = 0.01


@dataclass(frozen=True, kw_only=True)
class Stains:
    """What Macenko's method finds of a site.

    Args:
        white: (3,) density of the empty slide.
        colours: (3, 3) unit vectors as columns: the stain that takes most red, the other, and
            their normal, for what is neither.
        amounts: (2,) 99th percentile of each stain's amount over stained pixels.
    """

    white: Tensor
    colours: Tensor
    amounts: Tensor


def find_stains(density: Tensor, white: Tensor | None = None) -> Stains | None:
    """Return a site's stains, or ``None`` where there are not two that can be told apart.

    Of stained pixels' densities above the slide's own the plane of the two largest eigenvectors of
    the covariance is taken; in it the 1% and 99% quantiles of the angle are the stains. The normal
    of the plane completes them, so that no colour is lost on the way back.

    ``None`` where fewer than 64 pixels are stained, where the stains are less than 0.05 radians
    apart, or where one of them is hardly there (amount below 0.05).

    Args:
        density: (P, 3) optical densities, float64.
        white: (3,) density of the empty slide; the 1% quantile of each channel if ``None``, which
            takes the lamp's colour out.
    """
    if len(density) < MIN_PIXELS:
        return None
    if white is None:
        white = torch.stack([_quantile(channel, _WHITE) for channel in density.unbind(1)])
    above = density - white
    stained = above[(above >= MIN_DENSITY).all(1)]
    if len(stained) < MIN_PIXELS:
        return None
    centred = stained - stained.mean(0)
    plane = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, 1:]
    # The sign of an eigenvector is arbitrary; angles are measured from where the pixels are.
    middle = stained.mean(0) @ plane
    if float(middle.norm()) < MIN_DENSITY:
        return None
    axes = plane @ torch.stack([middle, middle.flip(0) * middle.new_tensor([-1.0, 1.0])], 1)
    axes = axes / axes.norm(dim=0)
    seen = stained @ axes
    angles = torch.atan2(seen[:, 1], seen[:, 0])
    ends = [_quantile(angles, q) for q in (_ANGLE, 1 - _ANGLE)]
    if float(ends[1] - ends[0]) < _LEAST_ANGLE:
        return None
    first, second = (axes @ torch.stack([end.cos(), end.sin()]) for end in ends)
    if first[0] < second[0]:
        first, second = second, first
    normal = torch.linalg.cross(first, second)
    colours = torch.stack([first, second, normal / normal.norm()], 1)
    found = torch.linalg.solve(colours, stained.T)[:2]
    amounts = torch.stack([_quantile(amount, _MOST) for amount in found])
    if float(amounts.min()) < _LEAST_AMOUNT:
        return None
    return Stains(white=white, colours=colours, amounts=amounts)


def stain_map(source: Stains, target: Stains, max_gain: float) -> Tensor:
    """Return the matrix (3, 3) from the target's densities to the source's, both above the slide's.

    S_s diag(a_s / a_t, 1) S_t^-1: amounts are measured by the target's stains, scaled to the
    source's 99th percentiles and shown in the source's stains; what is neither is kept.

    Args:
        source: stains of the source.
        target: stains of the target.
        max_gain: largest change of an amount, either way.
    """
    colours, amounts = target.colours, target.amounts
    alike = source.colours[:, :2].T @ colours[:, :2]
    if alike.diag().sum() < alike.fliplr().diag().sum():
        # The site's lamp or camera put its stains in the other order.
        colours = torch.stack([colours[:, 1], colours[:, 0], -colours[:, 2]], 1)
        amounts = amounts.flip(0)
    ratio = (source.amounts / amounts).clamp(1 / max_gain, max_gain)
    scale = torch.cat([ratio, ratio.new_ones(1)])
    matrix: Tensor = source.colours * scale @ torch.linalg.inv(colours)
    return matrix


def _quantile(values: Tensor, q: float) -> Tensor:
    ordered = values.sort().values
    place = q * (len(ordered) - 1)
    left = int(place)
    right = min(left + 1, len(ordered) - 1)
    return ordered[left] + (place - left) * (ordered[right] - ordered[left])
