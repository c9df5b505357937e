"""TIFF images that Pillow would cut to 8 bit or cannot read: deep colour and unusual floats."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from daptkit.data.image import DecodedImage
from daptkit.data.pixels import on_black, type_range, upright
from daptkit.errors import DataError

_BITS, _SAMPLES, _ORIENTATION = 258, 277, 274
_PREMULTIPLIED, _STRAIGHT = 1, 2


def is_tiff(data: bytes) -> bool:
    """Return whether the content starts like a TIFF or BigTIFF file."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def needs_tiff_array(image: Image.Image) -> bool:
    """Return whether Pillow would lose levels: colour of more than 8 bits a sample."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (1,))
    depth = max(bits) if isinstance(bits, tuple) else int(bits)
    return int(tags.get(_SAMPLES, 1)) > 1 and depth > 8


def decode_tiff_array(data: bytes, frame: int | None, max_pixels: int) -> DecodedImage:
    """Decode a page through tifffile, upright, alpha composited on black.

    Args:
        data: content of the file.
        frame: page from 0; ``None`` for a file with one.
        max_pixels: larger images are refused.

    Raises:
        DataError: too large, several pages and none named, an alpha channel of floats, or a
            compression that needs imagecodecs.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        frames = len(file.pages)
        page: Any = file.pages[select_frame(frames, frame)]
        if page.dtype is None or page.dtype == bool:  # Pillow reads images of one bit
            raise DataError("damaged: tags of the TIFF are missing")
        if page.imagewidth * page.imagelength > max_pixels:
            raise DataError(
                f"{page.imagewidth} x {page.imagelength} pixels, more than {max_pixels:,}"
            )
        array = upright(_channels_last(page), int(page.tags.valueof(_ORIENTATION, 1)))
        array = _without_alpha(array, tuple(int(kind) for kind in page.extrasamples))
        inverted = page.photometric == 0
    colour = array.ndim == 3 and array.shape[-1] == 3
    return DecodedImage(
        array=array,
        value_range=type_range(array.dtype),
        photometric="RGB" if colour else "MONOCHROME1" if inverted else "MONOCHROME2",
        frames=frames,
    )


def count_tiff_pages(path: Path) -> int:
    """Return the number of pages of a TIFF file."""
    with tifffile.TiffFile(path) as file:
        return len(file.pages)


def select_frame(frames: int, frame: int | None) -> int:
    """Return the frame to read of a file with ``frames`` of them.

    Raises:
        DataError: there are several and none is named, or the named one does not exist.
    """
    if frame is None and frames > 1:
        raise DataError(
            f"{frames} frames; give --frames first, middle, all or a number from 0, or name one in "
            "the column 'frame' of a manifest"
        )
    if frame is not None and frame >= frames:
        raise DataError(f"no frame {frame}; the file has {frames}, counted from 0")
    return frame or 0


def _channels_last(page: Any) -> npt.NDArray[Any]:
    """Return the page's pixels, (H, W) or (H, W, C)."""
    try:
        array: npt.NDArray[Any] = np.asarray(page.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise DataError(
            f"{page.compression.name} compression of a {page.dtype} TIFF: install imagecodecs, "
            "or save the image without compression"
        ) from error
    axes = str(page.axes)
    if axes == "SYX":
        array = np.moveaxis(array, 0, -1)
    elif axes not in ("YX", "YXS"):
        raise DataError(f"a page with axes {axes} is not a flat image")
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array


def _without_alpha(array: npt.NDArray[Any], extra: tuple[int, ...]) -> npt.NDArray[Any]:
    if not extra or extra[-1] not in (_PREMULTIPLIED, _STRAIGHT):
        return array
    if extra[-1] == _PREMULTIPLIED:  # such colours are already those on black
        array = array[..., :-1]
    elif array.dtype.kind == "u":
        array = on_black(array)
    else:
        raise DataError(f"an alpha channel of type {array.dtype} has no defined maximum")
    return array[..., 0] if array.shape[-1] == 1 else array
