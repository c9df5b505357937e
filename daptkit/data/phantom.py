"""Phantoms of axial chest slices: drawn anatomy with vessels, and with or without a lesion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Image2D = npt.NDArray[np.float64]  # (H, W)

PHANTOM_CLASSES = ("normal", "benign", "malignant")
"""No lesion; a small, round, calcified nodule; a larger mass with spikes."""

AIR, FAT, MUSCLE, BLOOD, BONE = 0.03, 0.3, 0.5, 0.56, 0.88
LUNG = (0.08, 0.2)  # from full inspiration to expiration
LESION = {"benign": 0.72, "malignant": 0.5}
"""Grey levels, in [0, 1]."""

_FINE = 2


@dataclass(frozen=True)
class _Lung:
    """Centre and half axes of one lung, in half edges of the image."""

    x: float
    y: float
    half_width: float
    half_height: float


def draw_phantom(label: str, size: int, rng: np.random.Generator) -> Image2D:
    """Draw one slice as an ideal scanner would see it.

    Size, shape and place of every organ vary from image to image, and so do the lesion's.

    Args:
        label: one of :data:`PHANTOM_CLASSES`.
        size: edge of the image in pixels.
        rng: the only source of randomness.

    Returns:
        (size, size) grey levels in [0, 1], drawn at twice the size and averaged down.
    """
    fine = _FINE * size
    y, x = np.mgrid[-1 : 1 : fine * 1j, -1 : 1 : fine * 1j]  # (2H, 2W)
    x, y = x - rng.uniform(-0.04, 0.04), y - rng.uniform(-0.05, 0.05)
    image = _chest_wall(x, y, rng)
    lungs = _draw_lungs(image, x, y, rng)
    _draw_mediastinum(image, x, y, rng)
    image += 0.02 * _texture(fine, 0.05, rng) * (image > AIR)
    if label != "normal":
        _draw_lesion(image, x, y, label, lungs[int(rng.integers(2))], rng)
    averaged: Image2D = image.reshape(size, _FINE, size, _FINE).mean(axis=(1, 3))
    return averaged.clip(0.0, 1.0)


def _chest_wall(x: Image2D, y: Image2D, rng: np.random.Generator) -> Image2D:
    """Return fat, muscle and ribs around an empty chest."""
    half_width, half_height = rng.uniform(0.88, 0.96), rng.uniform(0.68, 0.78)
    radius = (np.abs(x / half_width) ** 2.5 + np.abs(y / half_height) ** 2.5) ** 0.4
    angle = np.arctan2(y / half_height, x / half_width)
    image = np.full(x.shape, AIR)
    image[radius < 1] = FAT
    image[radius < rng.uniform(0.9, 0.95)] = MUSCLE
    # A slice cuts each rib aslant: short arcs, at places that differ from patient to patient.
    arcs = np.cos(rng.integers(8, 11) * angle + rng.uniform(0, 2 * np.pi)) > rng.uniform(-0.2, 0.3)
    image[arcs & (np.abs(radius - 0.81) < 0.035)] = BONE
    return image


def _draw_lungs(
    image: Image2D, x: Image2D, y: Image2D, rng: np.random.Generator
) -> tuple[_Lung, ...]:
    """Draw both lungs with their vessels."""
    vessels = np.clip(_texture(len(image), 0.035, rng) - 1.4, 0.0, 0.7)
    tissue = rng.uniform(*LUNG) + 0.35 * vessels
    lungs = []
    for side in (-1, 1):
        lung = _Lung(
            x=side * rng.uniform(0.38, 0.44),
            y=rng.uniform(-0.06, 0.02),
            half_width=rng.uniform(0.26, 0.32),
            half_height=rng.uniform(0.4, 0.5),
        )
        across = (x - lung.x) / lung.half_width
        # Narrower towards the heart.
        inside = across**2 + ((y - lung.y) / lung.half_height / (1 + 0.25 * side * across)) ** 2 < 1
        image[inside] = tissue[inside]
        lungs.append(lung)
    return tuple(lungs)


def _draw_mediastinum(image: Image2D, x: Image2D, y: Image2D, rng: np.random.Generator) -> None:
    """Draw heart, aorta and vertebra between the lungs."""
    heart_x, heart_y = rng.uniform(0.03, 0.1), rng.uniform(-0.18, -0.08)
    heart = ((x - heart_x) / rng.uniform(0.2, 0.27)) ** 2
    heart += ((y - heart_y) / rng.uniform(0.2, 0.28)) ** 2
    image[heart < 1] = BLOOD
    image[np.hypot(x - 0.13, y - rng.uniform(0.2, 0.26)) < rng.uniform(0.07, 0.09)] = BLOOD + 0.06
    spine_y, radius = rng.uniform(0.38, 0.44), rng.uniform(0.11, 0.14)
    image[np.hypot(x, (y - spine_y) / 0.85) < radius] = BONE
    image[(np.abs(x) < 0.03) & (np.abs(y - spine_y - 0.15) < 0.07)] = BONE
    image[np.hypot(x, y - spine_y - radius) < 0.05] = MUSCLE


def _draw_lesion(
    image: Image2D, x: Image2D, y: Image2D, label: str, lung: _Lung, rng: np.random.Generator
) -> None:
    """Draw a disc, or a core with spikes, somewhere in the inner half of a lung."""
    reach, angle = np.sqrt(rng.uniform(0.0, 0.3)), rng.uniform(0, 2 * np.pi)
    dx = x - lung.x - reach * lung.half_width * np.cos(angle)
    dy = y - lung.y - reach * lung.half_height * np.sin(angle)
    distance, direction = np.hypot(dx, dy), np.arctan2(dy, dx)
    if label == "benign":
        edge = np.full(x.shape, rng.uniform(0.1, 0.13))
    else:
        spikes = np.cos(int(rng.integers(5, 8)) * direction + rng.uniform(0, 2 * np.pi))
        oval = 1 + 0.15 * np.cos(2 * direction + rng.uniform(0, 2 * np.pi))
        edge = rng.uniform(0.16, 0.2) * oval * (0.8 + 0.9 * np.maximum(0.0, spikes) ** 3)
    opacity = np.clip((edge - distance) / 0.04 + 0.5, 0.0, 1.0)
    image += opacity * (rng.uniform(0.9, 1.1) * LESION[label] - image)


def _texture(size: int, scale: float, rng: np.random.Generator) -> Image2D:
    """Return smooth noise (size, size) of zero mean and unit variance; ``scale`` in half edges."""
    noise = rng.standard_normal((size, size))
    smooth: Image2D = ndimage.gaussian_filter(noise, scale * size / 2, mode="wrap")
    smooth -= smooth.mean()
    smooth /= smooth.std()
    return smooth
