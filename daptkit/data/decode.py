"""Decoding of PNG, JPEG, TIFF, WebP and BMP with every level that the file holds.

Alpha is composited on black. EXIF rotation is applied. A damaged file is an error: nothing is
padded, guessed or replaced.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from daptkit.data.image import DecodedImage
from daptkit.data.pixels import on_black, type_range, upright
from daptkit.data.png import check_png, decode_deep_png, is_deep_colour_png
from daptkit.data.readers import NO_READERS, Readers, missing_package
from daptkit.data.tiff import (
    count_tiff_pages,
    decode_tiff_array,
    is_tiff,
    needs_tiff_array,
    select_frame,
)
from daptkit.errors import DataError

MAX_PIXELS = 100_000_000
"""Images with more pixels are refused: a small file may claim any size."""

# What they log of a damaged file is noise beside its reason, and may quote the file.
for _library in ("PIL", "tifffile"):
    logging.getLogger(_library).addHandler(logging.NullHandler())

_ONE_FRAME = (".jpg", ".jpeg", ".jpe", ".jfif", ".bmp")
_ORIENTATION, _UPRIGHT = 0x0112, 1
_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")


def read_image(path: Path, frame: int | None = None, readers: Readers = NO_READERS) -> DecodedImage:
    """Read one image through the reader of its format, else through Pillow or tifffile.

    Args:
        path: file to read.
        frame: frame of a file with several, from 0; ``None`` for a file with one.
        readers: further formats.

    Raises:
        DataError: the file cannot be read; the message is the reason and holds no path.
    """
    found = readers.find(path)
    with _reasons(path, plugin=found is not None):
        image = found.read(path, frame) if found else decode_bytes(path.read_bytes(), frame)
        _check(image)
    return image


def count_frames(path: Path, readers: Readers = NO_READERS) -> int:
    """Return the number of frames of a file, from its header alone.

    Raises:
        DataError: the header cannot be read; the message is the reason and holds no path.
    """
    found = readers.find(path)
    with _reasons(path, plugin=found is not None):
        if found is not None:
            return 1 if found.count is None else found.count(path)
        if path.suffix.lower() in _ONE_FRAME:
            return 1
        try:
            with Image.open(path, formats=_FORMATS) as image:
                return _frames(image)
        except UnidentifiedImageError:
            return count_tiff_pages(path)


@contextlib.contextmanager
def _reasons(path: Path, *, plugin: bool) -> Iterator[None]:
    """Turn whatever reading a file raises into its reason."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # damaged files and plugins raise anything; the image is named
        raise DataError(_reason(error, path, plugin=plugin)) from error


def decode_bytes(data: bytes, frame: int | None = None) -> DecodedImage:
    """Decode the content of an image file.

    Args:
        data: content of the file.
        frame: frame of a file with several, from 0; ``None`` for a file with one.

    Raises:
        DataError: empty, too large, or several frames and none named. What Pillow and tifffile
            raise on damaged content is passed on.
    """
    if not data:
        raise DataError("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        if is_tiff(data):
            return decode_tiff_array(data, frame, MAX_PIXELS)
        raise
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
    if image.format == "PNG":
        check_png(data)
    if image.format == "TIFF" and needs_tiff_array(image):
        return decode_tiff_array(data, frame, MAX_PIXELS)
    frames = _frames(image)
    chosen = select_frame(frames, frame)
    if chosen:
        image.seek(chosen)
    if is_deep_colour_png(data):
        return _from_deep_png(data, image)
    return _from_pillow(image, frames)


def _frames(image: Image.Image) -> int:
    # Further frames of a JPEG are the previews of cameras.
    return 1 if image.format in ("JPEG", "MPO") else int(getattr(image, "n_frames", 1))


def _from_pillow(image: Image.Image, frames: int) -> DecodedImage:
    file_format = image.format
    inverted = file_format == "TIFF" and _tiff_tag(image, 262) == 0
    image.load()
    if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:  # else it would only be copied
        image = ImageOps.exif_transpose(image)
    array = _stored_levels(image, file_format)
    if array.dtype == np.uint8:
        # Pillow inverts 8-bit TIFFs whose zero is white itself.
        photometric = "RGB" if array.ndim == 3 else "MONOCHROME2"
        return DecodedImage(
            array=array, value_range=(0.0, 255.0), photometric=photometric, frames=frames
        )
    return DecodedImage(
        array=array,
        value_range=type_range(array.dtype),
        photometric="MONOCHROME1" if inverted else "MONOCHROME2",
        frames=frames,
    )


def _stored_levels(image: Image.Image, file_format: str | None) -> npt.NDArray[Any]:
    """Return (H, W) or (H, W, 3) in the depth of the file, alpha composited on black."""
    mode = image.mode
    if mode.startswith("I;16"):
        # convert("RGB") would clip such an image to 255 levels.
        return np.asarray(image).astype(np.uint16)
    if mode == "I":
        return np.asarray(image).astype(np.uint16 if file_format == "PNG" else np.int32)
    if mode == "F":
        return np.asarray(image, dtype=np.float32)
    if mode in ("LA", "La") or (mode == "L" and "transparency" in image.info):
        return on_black(np.asarray(image.convert("LA")))[..., 0]
    if mode in ("RGBA", "RGBa", "PA") or "transparency" in image.info:
        return on_black(np.asarray(image.convert("RGBA")))
    wanted = "L" if mode in ("1", "L") else "RGB"
    return np.asarray(image if mode == wanted else image.convert(wanted))


def _from_deep_png(data: bytes, image: Image.Image) -> DecodedImage:
    array: npt.NDArray[Any] = decode_deep_png(data)
    if array.shape[-1] in (2, 4):
        array = on_black(array)
    array = upright(array, image.getexif().get(_ORIENTATION, _UPRIGHT))
    colour = array.shape[-1] == 3
    return DecodedImage(
        array=array if colour else array[..., 0],
        value_range=(0.0, 65535.0),
        photometric="RGB" if colour else "MONOCHROME2",
    )


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    tags: Any = getattr(image, "tag_v2", {})
    return tags.get(tag)


def _check(image: DecodedImage) -> None:
    array = image.array
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"shape {array.shape} is not (height, width) or (height, width, channels)")
    if array.dtype.kind not in "iuf":
        raise DataError(f"pixels of type {array.dtype} are not numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError("pixels are NaN or infinite")


def _reason(error: Exception, path: Path, *, plugin: bool) -> str:
    """Say why, without a path: reasons are stored with a run."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, UnidentifiedImageError):
        package = missing_package(path.name)
        hint = f"; pip install {package} reads such files" if package else ""
        return f"not a readable PNG, JPEG, TIFF, WebP or BMP image{hint}"
    if plugin:
        return f"its reader failed with {type(error).__name__}"
    if isinstance(error, OSError):
        return f"damaged: {error}"
    first = str(error).partition("\n")[0]
    return f"damaged: {type(error).__name__}: {first}"
