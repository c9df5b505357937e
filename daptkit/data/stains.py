"""Other stains and another lamp for colour images, in optical density.

A pixel's optical density is D = -ln(I) per channel. By the law of Lambert and Beer, D = A S with
A (3,) the amounts of three stains and S (3, 3) their densities in red, green and blue, one stain a
row. Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution",
Analytical and Quantitative Cytology and Histology 23(4), 2001.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

STAINS: Array = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Haematoxylin, eosin and diaminobenzidine of Ruifrok and Johnston (2001), rows."""

_DARKEST = 1.0 / 255.0
_AMOUNT = 0.6
_ANGLE = 0.4
_TINT = 0.25


@dataclass(frozen=True, kw_only=True)
class StainShift:
    """One site's stains and lamp: D becomes D mixing + tint.

    Args:
        mixing: (3, 3), S^-1 diag(a) S' with a the change of the amounts and S' the site's stains.
        tint: (3,) density that the lamp and the camera add, at least 0.
    """

    mixing: Array
    tint: Array

    def to_json(self) -> dict[str, Any]:
        """Return plain lists."""
        return {"mixing": self.mixing.tolist(), "tint": self.tint.tolist()}


def draw_stain(strength: float, rng: np.random.Generator) -> StainShift:
    """Draw the stains and the lamp of a site.

    The amount of each stain is multiplied by exp(0.6 s u), u in [1/2, 1] with a random sign. The
    vector of each turns by 0.4 s radians in a random direction; no stain may emit light. The lamp
    is warmer or cooler: it adds a density of 0.25 s u to blue or to red, and up to half of that to
    green. Scaling and shifting stains is the augmentation of Tellez et al., arXiv:1808.05896.

    Args:
        strength: s in [0, 1]; 0 keeps everything.
        rng: source of the draws.
    """
    signs = rng.choice([-1.0, 1.0], 3)
    amounts = np.exp(_AMOUNT * strength * signs * rng.uniform(0.5, 1.0, 3))
    before = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    turned = _turned(before, _ANGLE * strength, rng)
    warm = np.array([0.0, rng.uniform(0.0, 0.5), 1.0])
    tint = _TINT * strength * rng.uniform(0.5, 1.0) * (warm if rng.random() < 0.5 else warm[::-1])
    return StainShift(mixing=np.linalg.solve(before, amounts[:, np.newaxis] * turned), tint=tint)


def restain(image: Array, stain: StainShift) -> Array:
    """Return an image as another site's stains and lamp show it.

    Args:
        image: (H, W, 3) in [0, 1], red, green and blue.
        stain: the site's.

    Returns:
        (H, W, 3) in [0, 1].

    Raises:
        ValueError: the image is not (H, W, 3).
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"stains need (H, W, 3), not {image.shape}")
    density = -np.log(np.maximum(image, _DARKEST))
    shown: Array = np.exp(-(density @ stain.mixing + stain.tint)).clip(0.0, 1.0)
    return shown


def _turned(vectors: Array, angle: float, rng: np.random.Generator) -> Array:
    """Turn unit vectors (n, 3) by an angle in random directions, within the positive octant."""
    directions = rng.standard_normal(vectors.shape)
    directions -= (directions * vectors).sum(axis=1, keepdims=True) * vectors
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    turned = np.maximum(np.cos(angle) * vectors + np.sin(angle) * directions, 0.0)
    result: Array = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    return result
