"""Augmentation presets: one random affine map per image, batches resampled on their device.

torchvision's transforms draw one map for a whole batch, so they would show a step the same
rotation of every image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from daptkit.data.aligned import AlignedImages
from daptkit.data.imageset import ImageSet, to_float
from daptkit.errors import UsageError, did_you_mean

_SMALL = 64
_GREY_SAMPLE = 32
_GREY_TOLERANCE = 0.02

N_DRAWS = 7
"""Random numbers that decide what becomes of one image."""


@dataclass(frozen=True, kw_only=True)
class AffineRange:
    """Ranges that each image's map is drawn from.

    Args:
        degrees: largest rotation either way.
        translate: largest shift either way, fraction of the edge.
        scale: (low, high) magnification, drawn log-uniformly.
        shear: largest shear either way, degrees.
        flip_x, flip_y: whether to mirror left-right or top-bottom, each with probability 1/2.
        reflect: fill by reflection; else by the median of the image's own border.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    flip_x: bool = False
    flip_y: bool = False
    reflect: bool = False


PRESETS: dict[str, AffineRange | None] = {
    "none": None,
    # Writers and scanners differ in margins: some digits fill their frame, some half of it.
    "digits": AffineRange(degrees=12.0, translate=0.08, scale=(0.8, 1.3), shear=8.0),
    # Left and right differ in a chest, so no flips; grey levels carry the finding, so no contrast.
    "xray": AffineRange(degrees=10.0, translate=0.08, scale=(0.85, 1.15)),
    # A slide has no up.
    "microscopy": AffineRange(
        degrees=180.0, translate=0.05, scale=(0.9, 1.1), flip_x=True, flip_y=True, reflect=True
    ),
    "photo": AffineRange(degrees=5.0, translate=0.1, scale=(0.9, 1.4), flip_x=True, reflect=True),
}
"""Preset name to what it does; ``None`` changes nothing."""


class Augment:
    """Apply a preset to batches.

    Args:
        preset: ``none``, ``digits``, ``xray``, ``microscopy`` or ``photo``.

    Raises:
        UsageError: no such preset.
    """

    def __init__(self, preset: str) -> None:
        if preset not in PRESETS:
            raise UsageError(
                f"--aug is one of auto, {', '.join(PRESETS)}, not '{preset}'."
                + did_you_mean(preset, PRESETS)
            )
        self.preset = preset
        self.ranges = PRESETS[preset]

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        *,
        draws: Tensor | None = None,
    ) -> Tensor:
        """Return changed images.

        Args:
            images: (N, C, H, W), H = W, uint8 or floats in [0, 1].
            generator: the only source of randomness.
            draws: (:data:`N_DRAWS`, N) numbers in [0, 1) that decide instead of the generator.

        Returns:
            (N, C, H, W) floats in [0, 1] on the same device; a type of its own is kept.
        """
        if self.ranges is None or not len(images):
            return to_float(images)
        images = to_float(images)
        if draws is None:
            theta = affine_maps(self.ranges, len(images), images, generator)
        else:
            theta = maps_of(self.ranges, draws.to(images))
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        if self.ranges.reflect:
            return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
        # Zeros only fit a black background, and repeating the border would smear strokes.
        fill = _border_median(images)
        shifted = F.grid_sample(images - fill, grid, padding_mode="zeros", align_corners=False)
        return shifted.add_(fill).clamp_(0.0, 1.0)


def affine_maps(
    ranges: AffineRange, count: int, like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Draw maps from output to input coordinates in [-1, 1], (N, 2, 3); see :func:`maps_of`.

    Args:
        ranges: what to draw from.
        count: number of maps N.
        like: tensor whose device and type the result takes.
        generator: source of randomness.
    """
    device = like.device if generator is None else generator.device
    return maps_of(ranges, torch.rand(N_DRAWS, count, generator=generator, device=device).to(like))


def maps_of(ranges: AffineRange, draws: Tensor) -> Tensor:
    """Return the maps (N, 2, 3) that random numbers stand for.

    x_in = R(angle) [[1, tan(shear)], [0, 1]] diag(flip / scale) x_out + shift.

    Args:
        ranges: what to draw from.
        draws: (:data:`N_DRAWS`, N) numbers in [0, 1).
    """
    signed = draws * 2 - 1
    angle = math.radians(ranges.degrees) * signed[0]
    shear = torch.tan(math.radians(ranges.shear) * signed[1])
    low, high = (math.log(value) for value in ranges.scale)
    inverse_scale = torch.exp(-(low + (high - low) * draws[2]))
    shift = 2 * ranges.translate * signed[3:5]
    sign_x = _sign(draws[5]) if ranges.flip_x else 1.0
    sign_y = _sign(draws[6]) if ranges.flip_y else 1.0
    x, y = inverse_scale * sign_x, inverse_scale * sign_y
    cos, sin = torch.cos(angle), torch.sin(angle)
    top = torch.stack([cos * x, (cos * shear - sin) * y, shift[0]], dim=-1)
    bottom = torch.stack([sin * x, (sin * shear + cos) * y, shift[1]], dim=-1)
    return torch.stack([top, bottom], dim=1)


def _sign(draws: Tensor) -> Tensor:
    # Not torch.where of two numbers, which are copied to a GPU that is waited for.
    return (draws >= 0.5).to(draws.dtype) * 2 - 1


def auto_preset(images: ImageSet | AlignedImages, img_size: int | None = None) -> str:
    """Return the preset that suits the images.

    Grey images (one channel, or equal channels in nine of ten of a sample) are digits up to 64
    pixels and X-rays above. Colour images count as microscopy: in medical imaging they are mostly
    stained slides and cells, which have no up. Name a preset where that is wrong.

    Args:
        images: images of the training domain.
        img_size: edge of the model's input, pixels; ``None`` for that of the images.
    """
    if _is_grey(images):
        return "digits" if (img_size or images.conversion.img_size) <= _SMALL else "xray"
    return "microscopy"


def _is_grey(images: ImageSet | AlignedImages) -> bool:
    if images.conversion.in_chans == 1:
        return True
    rows = np.unique(np.linspace(0, len(images) - 1, _GREY_SAMPLE).astype(np.int64))
    sample = images.batch(rows)
    pixels = sample.float() / 255 if sample.dtype == torch.uint8 else sample
    spread = pixels.amax(1) - pixels.amin(1)  # (n, H, W)
    return bool((spread.mean((1, 2)) <= _GREY_TOLERANCE).float().mean() >= 0.9)


def _border_median(images: Tensor) -> Tensor:
    """Return the median of each image's outermost pixels, (N, C, 1, 1)."""
    sides = (images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1])
    return torch.cat(sides, dim=-1).median(dim=-1).values[:, :, None, None]
