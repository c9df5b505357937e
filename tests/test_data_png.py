"""PNG: colour of 16 bit against the specification, and damage that decoders pass over."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from daptkit.data.decode import read_image
from daptkit.data.png import decode_deep_png
from daptkit.errors import DataError
from make_images import encoded, png16, rows_of

RNG = np.random.default_rng(6)


def deep(*shape: int) -> np.ndarray:
    return RNG.integers(0, 65536, shape).astype(np.uint16)


def refused(data: bytes, path: Path) -> str:
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_image(path)
    return str(caught.value)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_deep_colour_png(tmp_path: Path, channels: int, interlaced: bool) -> None:
    """Exact in both orders of rows, and a flipped bit is found."""
    pixels = deep(9, 11, channels)
    data = png16(pixels, interlaced=interlaced)
    assert np.array_equal(decode_deep_png(data), pixels)
    for position in range(data.index(b"IDAT") + 4, len(data) - 12, 7):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        reason = refused(bytes(flipped), tmp_path / "x.png")
        assert reason == "damaged: the check sum of its pixel data is wrong"


def filtered(pixels: np.ndarray, kinds: Sequence[int]) -> bytes:
    """Filter rows byte by byte, as section 9 of the PNG specification says."""
    depth = 2 * pixels.shape[2]
    above = [0] * depth * pixels.shape[1]
    out = bytearray()
    for row, kind in zip(pixels, kinds, strict=True):
        here = list(row.astype(">u2").tobytes())
        out.append(kind)
        for at, byte in enumerate(here):
            a = here[at - depth] if at >= depth else 0
            b, c = above[at], above[at - depth] if at >= depth else 0
            paeth = min((a, b, c), key=lambda near: abs(a + b - c - near))
            out.append((byte - (0, a, b, (a + b) // 2, paeth)[kind]) % 256)
        above = here
    return bytes(out)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_every_filter_of_deep_colour(channels: int) -> None:
    pixels = deep(10, 7, channels)
    rows = zlib.compress(filtered(pixels, [0, 1, 2, 3, 4, 4, 3, 2, 1, 0]))
    assert np.array_equal(decode_deep_png(png16(pixels, rows)), pixels)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda raw: zlib.compress(raw[:-30]), "^truncated"),
        (lambda raw: zlib.compress(raw)[:-40], "^truncated"),
        (lambda raw: zlib.compress(b"\x09" + raw[1:]), "^damaged"),
        (lambda raw: zlib.compress(raw)[:-1] + b"\0", "^damaged: its pixel data do not unpack"),
        (lambda raw: b"no zlib stream", "^damaged: its pixel data do not unpack"),
        (lambda raw: b"", "^damaged: a PNG without pixel data"),
    ],
)
def test_wrong_rows_with_right_check_sums(
    tmp_path: Path, spoil: Callable[[bytes], bytes], reason: str
) -> None:
    pixels = deep(9, 11, 3)
    data = png16(pixels, spoil(rows_of(pixels)))
    assert re.search(reason, refused(data, tmp_path / "x.png"))


def test_more_rows_than_needed_are_no_fault(tmp_path: Path) -> None:
    pixels = deep(9, 11, 3)
    long = zlib.compress(rows_of(pixels) + bytes(5000))
    (tmp_path / "x.png").write_bytes(png16(pixels, long))
    assert np.array_equal(read_image(tmp_path / "x.png").array, pixels)


@pytest.mark.parametrize("pixels", [deep(12, 12), deep(12, 12) >> 8, deep(12, 12, 3) >> 8])
def test_a_flipped_bit_of_a_png_is_found(tmp_path: Path, pixels: np.ndarray) -> None:
    data = encoded(pixels if pixels.max() > 255 else pixels.astype(np.uint8), "PNG")
    path = tmp_path / "x.png"
    for position in range(data.index(b"IDAT") + 4, len(data) - 12, 5):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(bytes(flipped))
        with pytest.raises(DataError, match="damaged"):
            read_image(path)
