"""Colour transfer between sites: mean and spread, covariance, or stains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from daptkit.errors import UsageError
from daptkit.method import FitContext, Method, TaskInfo
from daptkit_appearance.plugin import ColourOptions
from daptkit_appearance.sample import MIN_PIXELS, check_samples, is_grey, site_pixels
from daptkit_appearance.spaces import from_space, mix, to_space
from daptkit_appearance.stains import find_stains, stain_map

MAX_GAIN = 5.0
"""Largest factor of a spread or of a stain's amount, and the inverse of the smallest."""
MIN_STD = 0.005
"""Spread below which a channel of a site is taken for constant; about a level of 8 bits."""

_NOTES = (
    "",
    "a site has too few pixels for colour statistics",
    "a channel of a site is about constant, so its spread was left as it is",
    "a site's colours lie in a plane or on a line, so channels were matched one by one",
    "no two stains could be told apart at a site",
)
_AS_IT_IS = (1, 4)


def mean_std_map(source: Tensor, target: Tensor) -> tuple[Tensor, bool]:
    """Return the matrix diag(s_s / s_t) of the spreads of two sites, and whether all were usable.

    With y = A (x - m_t) + m_s each channel of the target gets the source's mean and standard
    deviation. A channel that is about constant at a site (deviation below 0.005) keeps its spread;
    no factor lies outside [1/5, 5].

    Args:
        source: (P, 3) pixels in a colour space.
        target: (Q, 3).

    Reference: Reinhard et al. 2001, "Color transfer between images", doi:10.1109/38.946629.
    """
    s, t = source.std(0), target.std(0)
    usable = (s >= MIN_STD) & (t >= MIN_STD)
    gain = (s / t.clamp(min=MIN_STD)).clamp(1 / MAX_GAIN, MAX_GAIN)
    return torch.where(usable, gain, torch.ones_like(gain)).diag(), bool(usable.all())


def covariance_map(source: Tensor, target: Tensor) -> Tensor | None:
    """Return the symmetric matrix that gives the target's colours the source's covariance.

    A = C_t^-1/2 (C_t^1/2 C_s C_t^1/2)^1/2 C_t^-1/2, the optimal transport of one normal
    distribution to the other: of all maps with A C_t A' = C_s it moves colours least. Eigenvalues
    of A are kept within [1/5, 5]. ``None`` where a covariance has a direction of deviation below
    0.005.

    Args:
        source: (P, 3) pixels in a colour space.
        target: (Q, 3).

    Reference: Pitie, Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping for
    example-based colour transfer", doi:10.1049/cp:20070055.
    """
    c_s, c_t = source.T.cov(), target.T.cov()
    values, vectors = torch.linalg.eigh(c_t)
    if min(float(values[0]), float(torch.linalg.eigvalsh(c_s)[0])) < MIN_STD**2:
        return None
    root = vectors * values.sqrt() @ vectors.T
    inverse = vectors / values.sqrt() @ vectors.T
    inner, turned = torch.linalg.eigh(root @ c_s @ root)
    found = inverse @ (turned * inner.clamp(min=0).sqrt() @ turned.T) @ inverse
    gains, axes = torch.linalg.eigh((found + found.T) / 2)
    matrix: Tensor = axes * gains.clamp(1 / MAX_GAIN, MAX_GAIN) @ axes.T
    return matrix


class Colour(Method):
    """Give target images the source site's colours: y = A (x - m_t) + m_s in a colour space.

    Args:
        options: see :class:`daptkit_appearance.plugin.ColourOptions`.
        task: not used.
    """

    options: ColourOptions
    matrix: Tensor
    source_centre: Tensor
    target_centre: Tensor
    note: Tensor

    def __init__(self, options: ColourOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.space = "density" if options.kind == "macenko" else options.space
        self.register_buffer("matrix", torch.eye(3))
        self.register_buffer("source_centre", torch.zeros(3))
        self.register_buffer("target_centre", torch.zeros(3))
        self.register_buffer("note", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def fit_images(self, source: Tensor, target: Tensor) -> None:
        """Work out the map of colours from samples of both sites.

        Raises:
            UsageError: the images have not three channels.
            DataError: images that cannot be used.
        """
        check_samples("colour", source, target)
        if source.shape[1] != 3:
            raise UsageError(
                f"colour needs images of 3 channels, not {source.shape[1]}; use -m histmatch, or"
                " --in-chans 3."
            )
        grey = is_grey(source) and is_grey(target)
        s, t = (
            to_space(site_pixels(images, grey=grey, masked=self.options.foreground), self.space)
            for images in (source, target)
        )
        if min(len(s), len(t)) < MIN_PIXELS:
            self.note.fill_(1)
        elif self.options.kind == "macenko":
            self._fit_stains(s, t)
        else:
            self._fit_moments(s, t)

    def _fit_moments(self, source: Tensor, target: Tensor) -> None:
        matrix = covariance_map(source, target) if self.options.kind == "covariance" else None
        if matrix is None:
            matrix, usable = mean_std_map(source, target)
            fell_back = self.options.kind == "covariance"
            self.note.fill_(3 if fell_back else 0 if usable else 2)
        self._keep(matrix, source.mean(0), target.mean(0))

    def _fit_stains(self, source: Tensor, target: Tensor) -> None:
        found_s, found_t = find_stains(source), find_stains(target)
        if found_s is None or found_t is None:
            self.note.fill_(4)
            return
        self._keep(stain_map(found_s, found_t, MAX_GAIN), found_s.white, found_t.white)

    def _keep(self, matrix: Tensor, source_centre: Tensor, target_centre: Tensor) -> None:
        self.matrix.copy_(matrix)
        self.source_centre.copy_(source_centre)
        self.target_centre.copy_(target_centre)

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        """Return target images (N, 3, H, W) with the source's colours; others as they are."""
        unmoved = int(self.note) in _AS_IT_IS
        if domain != "target" or self.options.strength == 0 or unmoved:
            return images
        x = images.float()
        centre_t, centre_s = (c.view(1, 3, 1, 1) for c in (self.target_centre, self.source_centre))
        moved = mix(to_space(x, self.space) - centre_t, self.matrix) + centre_s
        mapped = from_space(moved, self.space)
        return (x + self.options.strength * (mapped - x)).clamp(0.0, 1.0)

    def on_fit_start(self, ctx: FitContext) -> None:
        """Tell what could not be matched."""
        if int(self.note):
            ctx.note(f"colour: {self._said()}")

    def report(self) -> dict[str, Any]:
        """Return space, centres of both sites in it, and the matrix between them."""
        return {
            "space": self.space,
            "source_centre": _rounded(self.source_centre),
            "target_centre": _rounded(self.target_centre),
            "matrix": [_rounded(row) for row in self.matrix],
            "note": self._said(),
        }

    def _said(self) -> str:
        code = int(self.note)
        end = ": the target's images are left as they are" if code in _AS_IT_IS else ""
        return f"{_NOTES[code]}{end}." if code else ""


def _rounded(values: Tensor) -> list[float]:
    return [round(v, 4) for v in values.tolist()]


__all__ = ["Colour", "covariance_map", "mean_std_map"]
