"""The perceptual hash by which images that look alike are found: ``phash`` of ImageHash, 256 bits.

It keeps the signs of an image's lowest spatial frequencies against their median. Images look alike
if at most :data:`NEAR` bits differ. Mirrored, turned or clearly cropped images do not.
"""

from __future__ import annotations

from typing import Any

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from daptkit.data.convert import displayed
from daptkit.data.image import DecodedImage

NEAR = 24
"""Most bits that differ between two images that look alike.

Of 10.4 million pairs of chest X-rays of two patients none differs in fewer than 42 bits. JPEG of
quality 50, a brightness 5% off and resizing to between 75% and 150% change at most 24 bits of a
chest X-ray or a blood cell; resizing to 400% changed more in 1 of 115 X-rays.
"""

SMALLEST = 16
"""Edge in pixels below which an image has fewer details than the hash has bits."""

WORDS = 4
"""64-bit words of a hash."""

_EDGE = 16
_TRANSFORMED = 64
_GRID = 96
_SHOWN = (1.0, 99.0)


def look_hash(image: DecodedImage) -> npt.NDArray[np.uint64]:
    """Return the hash of an image, (4,).

    Only every k-th row and column of a large image is looked at, so that 96 to 191 of each are
    left, and of a colour image the green channel. Deeper images than 8 bit are scaled to what they
    say to show, else to their 1 and 99 percentiles. MONOCHROME1 is inverted.
    """
    array = image.array
    grid = even_grid(array if array.ndim == 2 else array[..., array.shape[-1] // 2], _GRID, _GRID)
    plane = Image.fromarray(np.ascontiguousarray(_shown(grid, image)))
    # To the size that phash works in: its own filter costs more than the rest of the hash.
    small = plane.resize((_TRANSFORMED, _TRANSFORMED), Image.Resampling.BOX)
    bits = imagehash.phash(small, hash_size=_EDGE, highfreq_factor=_TRANSFORMED // _EDGE).hash
    return np.packbits(bits.reshape(-1)).view(np.uint64)


def even_grid(array: npt.NDArray[Any], rows: int, columns: int) -> npt.NDArray[Any]:
    """Return a view of every k-th row and l-th column: at least so many of each, if there are."""
    down, right = max(1, array.shape[0] // rows), max(1, array.shape[1] // columns)
    return array[down // 2 :: down, right // 2 :: right]


def _shown(grid: npt.NDArray[Any], image: DecodedImage) -> npt.NDArray[np.uint8]:
    """Return 8-bit levels that are high where the image is shown bright."""
    if grid.dtype == np.uint8:
        plane = grid
    else:
        window = image.value_range
        if not image.display:
            low, high = (float(level) for level in np.percentile(grid, _SHOWN))
            if high <= low:
                low, high = float(grid.min()), max(float(grid.max()), float(grid.min()) + 1.0)
            window = (low, high)
        plane = np.round(255.0 * displayed(grid, window)).astype(np.uint8)
    return 255 - plane if image.photometric == "MONOCHROME1" else plane
