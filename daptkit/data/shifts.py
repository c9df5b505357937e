"""The parts of a :class:`daptkit.scanner.ScannerShift`, on arrays."""

from __future__ import annotations

import itertools
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from daptkit.data.stains import StainShift, restain
from daptkit.scanner import ScannerShift

Levels: TypeAlias = npt.NDArray[np.float64]
"""(H, W) grey or (H, W, C), black 0 and white 1."""

_DEGREE = 3


def apply_shift(
    image: Levels,
    shift: ScannerShift,
    rng: np.random.Generator,
    *,
    stain: StainShift | None = None,
) -> Levels:
    """Return what the other site makes of an image.

    y = clip(offset + contrast * (b * R(G(S(x))))^gamma + noise * e, 0, 1)

    Args:
        image: (H, W) or (H, W, C) in [0, 1].
        shift: what changes.
        rng: source of this image's bias field and noise.
        stain: the site's stains, from :func:`daptkit.data.stains.draw_stain`; ``None`` keeps them.

    Returns:
        The same shape, in [0, 1].

    Raises:
        ValueError: a stain, and an image that is not (H, W, 3).
    """
    seen = image if stain is None else restain(image, stain)
    seen = blurred(seen, shift.blur)
    seen = coarser(seen, shift.resolution)
    if shift.bias_field:
        seen = _over_channels(bias_field(seen.shape[:2], shift.bias_field, rng), seen) * seen
    seen = shift.offset + shift.contrast * seen**shift.gamma
    seen = seen + shift.noise * rng.standard_normal(seen.shape)
    clipped: Levels = np.clip(seen, 0.0, 1.0)
    return clipped


def blurred(image: Levels, sigma: float) -> Levels:
    """Blur by a Gaussian; the image goes on beyond its border as in a mirror, so means stay.

    Args:
        image: (H, W) or (H, W, C).
        sigma: standard deviation, fraction of the shorter edge.
    """
    pixels = sigma * min(image.shape[:2])
    spread: Levels = ndimage.gaussian_filter(image, (pixels, pixels, 0.0)[: image.ndim])
    return spread


def coarser(image: Levels, factor: float) -> Levels:
    """Lower the resolution: mean over larger pixels, then bilinear back to the same size.

    Args:
        image: (H, W) or (H, W, C).
        factor: pixels of the image to one of the detector, along an edge; 1 changes nothing.
    """
    if factor == 1.0:
        return image
    height, width = image.shape[:2]
    detector = (max(1, round(width / factor)), max(1, round(height / factor)))
    planes = [
        np.asarray(
            Image.fromarray(plane)
            .resize(detector, Image.Resampling.BOX)
            .resize((width, height), Image.Resampling.BILINEAR)
        )
        for plane in np.moveaxis(np.atleast_3d(image), -1, 0).astype(np.float32)
    ]
    return np.stack(planes, axis=-1).astype(np.float64).reshape(image.shape)


def bias_field(shape: tuple[int, ...], strength: float, rng: np.random.Generator) -> Levels:
    """Draw a smooth field of brightness, positive and of mean 1.

    b = exp(strength * p) / mean(exp(strength * p)), where p is a polynomial of degree 3 in both
    coordinates with normal coefficients on Legendre's basis, scaled to a largest value of 1. Van
    Leemput et al., "Automated model-based bias field correction of MR images of the brain", 1999,
    models the field as a polynomial.

    Args:
        shape: (H, W).
        strength: largest natural logarithm of the field before it is scaled to mean 1.
        rng: source of the coefficients.

    Returns:
        (H, W).
    """
    coefficients = np.zeros((_DEGREE + 1, _DEGREE + 1))
    for i, j in itertools.product(range(_DEGREE + 1), repeat=2):
        if 0 < i + j <= _DEGREE:
            coefficients[i, j] = rng.standard_normal()
    y, x = (np.linspace(-1.0, 1.0, edge) for edge in shape)
    polynomial = np.polynomial.legendre.leggrid2d(y, x, coefficients)
    field: Levels = np.exp(strength * polynomial / np.abs(polynomial).max())
    mean_one: Levels = field / field.mean()
    return mean_one


def _over_channels(field: Levels, image: npt.NDArray[Any]) -> Levels:
    return field if image.ndim == 2 else field[..., np.newaxis]
