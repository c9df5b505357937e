"""What a compressed frame says of itself, before a decoder believes it."""

from __future__ import annotations

import struct

from daptkit.errors import DataError

_JP2_BOX = b"\x00\x00\x00\x0cjP  "
_CODESTREAM_BOX = b"jp2c"
_J2K_START = b"\xff\x4f\xff\x51"
_JPEG_START = b"\xff\xd8"
# Start of frame of JPEG (without DHT, JPG and DAC, which lie between) and of JPEG-LS.
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


def without_boxes(data: bytes) -> bytes:
    """Return the codestream of a JPEG 2000 frame that was stored as a file, others as they are.

    DICOM knows the codestream alone, and pydicom's search through the boxes of a damaged file does
    not end.

    Raises:
        DataError: there is no codestream.
    """
    if not data.startswith(_JP2_BOX):
        return data
    start = data.find(_CODESTREAM_BOX)
    if start < 0:
        raise DataError("damaged: a JPEG 2000 frame without a codestream")
    return data[start + len(_CODESTREAM_BOX) :]


def frame_size(data: bytes) -> tuple[int, int] | None:
    """Return rows and columns of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K frame.

    A small frame may claim any size, which a decoder would set aside memory for.

    Args:
        data: the compressed frame, without boxes.

    Returns:
        ``None`` where they cannot be found.
    """
    try:
        if data.startswith(_J2K_START):
            right, bottom, left, top = struct.unpack_from(">4L", data, 8)
            return bottom - top, right - left
        return _jpeg(data) if data.startswith(_JPEG_START) else None
    except (IndexError, struct.error):
        return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    at = 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAME_MARKERS:
            rows, columns = struct.unpack_from(">2H", data, at + 5)
            # Zero rows: their number follows the first scan.
            return (rows, columns) if rows else None
        # A marker may be preceded by any number of fill bytes.
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None
