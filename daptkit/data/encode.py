"""Encoding of images as PNG files of 8 and 16 bit, grey and colour."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _COLOUR = 0, 2
_LEVEL = 6


def encode_png(pixels: npt.NDArray[Any]) -> bytes:
    """Return an image as the content of a PNG file of the same depth.

    Args:
        pixels: (H, W) or (H, W, 3), uint8 or uint16.

    Raises:
        ValueError: another shape or type.
    """
    if pixels.dtype not in (np.uint8, np.uint16) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(f"no PNG holds {pixels.dtype} pixels of shape {pixels.shape}")
    if pixels.dtype == np.uint16:
        return _encode_deep(pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _encode_deep(pixels: npt.NDArray[np.uint16]) -> bytes:
    """Write the format itself, as W3C PNG (third edition) says: Pillow has no 16-bit colour."""
    height, width = pixels.shape[:2]
    kind = _GREY if pixels.ndim == 2 else _COLOUR
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)  # (H, bytes of a row)
    unfiltered = np.zeros((height, 1), np.uint8)
    data = zlib.compress(np.hstack([unfiltered, rows]).tobytes(), _LEVEL)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum
