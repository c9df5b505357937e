"""What is kept of one image: a few numbers, and a small sample of its levels."""

from __future__ import annotations

import hashlib
import math
import zlib
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from daptkit.data.check.look import SMALLEST, even_grid
from daptkit.data.image import DecodedImage

PixelKey: TypeAlias = tuple[object, ...]

_SMALL = 2**14
"""Bytes of pixels that are hashed by SHA-256, which is slower than CRC-32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What one image is like.

    Args:
        height, width, channels: of the pixels, upright.
        dtype: number type of the levels, such as ``"uint16"``.
        bits: bits that the levels of an integer image need; 0 for floats.
        photometric: as the reader names it.
        display: whether the file says which levels to show.
        frames: number of frames of its file.
        low, high: smallest and largest level, of every pixel.
        covariates: facts of the acquisition as text, by name.
        checksum: of all pixels: SHA-256 of a small image, CRC-32 of one that also has a perceptual
            hash.
        sample: some levels, evenly spread over the image.
    """

    height: int
    width: int
    channels: int
    dtype: str
    bits: int
    photometric: str
    display: bool
    frames: int
    low: float
    high: float
    covariates: tuple[tuple[str, str], ...]
    checksum: bytes
    sample: npt.NDArray[Any]

    @property
    def constant(self) -> bool:
        """Whether every pixel has the same level."""
        return self.low == self.high

    @property
    def has_look(self) -> bool:
        """Whether a perceptual hash says something of the image."""
        return not self.constant and min(self.height, self.width) >= SMALLEST

    @property
    def pixel_key(self) -> PixelKey:
        """What is equal for images with the same pixels, beside their perceptual hashes."""
        size = (self.height, self.width, self.channels)
        return (self.checksum, *size, self.dtype, self.low, self.high)


def image_facts(image: DecodedImage, samples: int) -> ImageFacts:
    """Look at one decoded image.

    Args:
        image: its pixels.
        samples: levels to keep of each channel, at least, where there are so many; fewer than four
            times as many are kept.
    """
    array = image.array
    low, high = array.min().item(), array.max().item()
    edge = max(1, math.isqrt(samples))
    return ImageFacts(
        height=array.shape[0],
        width=array.shape[1],
        channels=1 if array.ndim == 2 else array.shape[2],
        dtype=array.dtype.name,
        bits=_bits(low, high) if array.dtype.kind in "iu" else 0,
        photometric=image.photometric,
        display=image.display,
        frames=image.frames,
        low=float(low),
        high=float(high),
        covariates=tuple((name, covariate_text(v)) for name, v in image.covariates.items()),
        checksum=_checksum(array),
        sample=even_grid(array, edge, edge).flatten(),
    )


def covariate_text(value: str | float) -> str:
    """Return a fact of the acquisition in one line."""
    return " ".join(value.split()) if isinstance(value, str) else f"{value:g}"


def _checksum(array: npt.NDArray[Any]) -> bytes:
    content = np.ascontiguousarray(array).data
    if array.nbytes <= _SMALL:
        return hashlib.sha256(content).digest()
    return zlib.crc32(content).to_bytes(4, "big")


def _bits(low: int, high: int) -> int:
    """Return the bits of the smallest integer type that holds both levels."""
    if low >= 0:
        return max(1, high.bit_length())
    return max(high.bit_length(), (-low - 1).bit_length()) + 1
