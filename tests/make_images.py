"""Files of images of every depth, byte by byte where no library writes them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import tifffile
from PIL import Image

_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def encoded(pixels: np.ndarray | Image.Image, file_format: str, **options: Any) -> bytes:
    """Encode by Pillow."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    """Encode by tifffile."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG with its right check sum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def rows_of(pixels: np.ndarray) -> bytes:
    """Return 16-bit rows of a PNG without filters."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)


def png16(
    pixels: np.ndarray, raw: bytes | None = None, extra: bytes = b"", *, interlaced: bool = False
) -> bytes:
    """Encode (H, W, C) uint16, with other rows than its own if ``raw`` is given."""
    height, width, channels = pixels.shape
    colour = next(kind for kind, count in _CHANNELS.items() if count == channels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, int(interlaced))
    if raw is None:
        passes = [pixels[y::dy, x::dx] for x, y, dx, dy in _ADAM7]
        parts = [part for part in passes if part.size] if interlaced else [pixels]
        raw = zlib.compress(b"".join(rows_of(part) for part in parts))
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", raw) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
