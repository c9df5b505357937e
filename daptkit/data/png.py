"""PNG beyond Pillow: check sums of pixel data, and colour of 16 bit.

Pillow reads no check sum of pixel data, so that a flipped bit may pass as another image, and it
cuts colour of 16 bit to 8. Here the high and the low bytes become two images of 8 bit, whose row
filters Pillow undoes: a PNG filter works on each byte of a pixel by itself.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from daptkit.errors import DataError

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = {2: 3, 4: 2, 6: 4}
_WHOLE = ((0, 0, 1, 1),)
# First column, first row, and steps of the seven passes of an interlaced image.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_STEP = 2**20


def check_png(data: bytes) -> None:
    """Refuse a PNG whose pixel data are cut or fail their check sums.

    Args:
        data: content of a file that starts with :data:`SIGNATURE`.

    Raises:
        DataError: as said; the message is the reason.
    """
    _pixel_data(data)


def is_deep_colour_png(data: bytes) -> bool:
    """Return whether the content is a PNG of 16-bit colour, or of grey with alpha."""
    # Bytes 24 and 25 are the bit depth and the colour type; 0 is grey, which Pillow reads.
    return data[:8] == SIGNATURE and data[24:25] == b"\x10" and data[25:26] != b"\x00"


def decode_deep_png(data: bytes) -> npt.NDArray[np.uint16]:
    """Decode a PNG for which :func:`is_deep_colour_png` holds.

    Args:
        data: content of the file.

    Returns:
        (H, W, C) as stored, alpha last: 2 channels of grey, 3 or 4 of colour.

    Raises:
        DataError: the pixel data are cut or damaged. A filter that no encoder writes is passed on
            as Pillow's error.
    """
    header, packed = _pixel_data(data)
    width, height, _, colour, _, _, interlaced = header
    if colour not in _CHANNELS:
        raise DataError(f"damaged: a PNG has no 16-bit colour of type {colour}")
    passes = _passes(width, height, 2 * _CHANNELS[colour], interlaced=bool(interlaced))
    raw = _unpacked(packed, sum(rows * length for rows, length in passes))
    high, low = bytearray(), bytearray()
    start = 0
    for rows, length in passes:
        block = raw[start : start + rows * length].reshape(rows, length)
        for half, first in ((high, 1), (low, 2)):
            half += np.hstack([block[:, :1], block[:, first::2]]).tobytes()
        start += rows * length
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, interlaced)
    planes = [_shallow(head, bytes(half)) for half in (high, low)]
    return np.stack(planes, axis=-1).view(">u2")[..., 0].astype(np.uint16)


def _pixel_data(data: bytes) -> tuple[tuple[int, ...], bytes]:
    """Return the fields of the header and the packed rows."""
    header, packed = b"", bytearray()
    for name, body in _chunks(data):
        if name == b"IHDR":
            header = body
        else:
            packed += body
    if len(header) != 13 or not packed:
        raise DataError("damaged: a PNG without pixel data")
    return struct.unpack(">IIBBBBB", header), bytes(packed)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and body of the chunks that decide the pixels."""
    position = len(SIGNATURE)
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if name in (b"IHDR", b"IDAT"):
            if len(data) < end + 4:
                raise DataError("truncated: its pixel data end early")
            if struct.unpack_from(">I", data, end)[0] != zlib.crc32(data[position + 4 : end]):
                raise DataError("damaged: the check sum of its pixel data is wrong")
            yield name, data[position + 8 : end]
        position = end + 4


def _passes(width: int, height: int, depth: int, *, interlaced: bool) -> list[tuple[int, int]]:
    """Return the rows of each pass, and the bytes of a row with the one that names its filter."""
    found = []
    for x, y, step_x, step_y in _ADAM7 if interlaced else _WHOLE:
        columns, rows = -((x - width) // step_x), -((y - height) // step_y)
        if columns > 0 and rows > 0:
            found.append((rows, 1 + columns * depth))
    return found


def _unpacked(packed: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Return ``size`` bytes of filtered rows; what follows is only checked."""
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(packed, size + 1)
        while unpacker.unconsumed_tail:
            unpacker.decompress(unpacker.unconsumed_tail, _STEP)
    except zlib.error as error:
        raise DataError("damaged: its pixel data do not unpack") from error
    if len(raw) < size or not unpacker.eof:
        raise DataError("truncated: its pixel data end early")
    return np.frombuffer(raw, np.uint8, count=size)


def _shallow(header: bytes, rows: bytes) -> npt.NDArray[np.uint8]:
    """Undo the filters of 8-bit rows, (H, W, C)."""
    stream = io.BytesIO(
        SIGNATURE
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(rows, 0))
        + _chunk(b"IEND", b"")
    )
    with Image.open(stream, formats=("PNG",)) as image:
        return np.asarray(image)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
