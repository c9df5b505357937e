"""Decoding: every level of every format, and clear reasons for damaged files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from daptkit.data import DecodedImage, Format, Readers, decode
from daptkit.data.decode import decode_bytes, read_image
from daptkit.errors import DataError

RNG = np.random.default_rng(0)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def png16(array: np.ndarray) -> bytes:
    """Encode (H, W) or (H, W, C) uint16, as the PNG specification says."""
    height, width = array.shape[:2]
    channels = 1 if array.ndim == 2 else array.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(array: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def deep(*shape: int) -> np.ndarray:
    return RNG.integers(0, 65536, shape).astype(np.uint16)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_eight_bit_formats_are_exact(file_format: str, mode: str) -> None:
    pixels = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    options = {"lossless": True} if file_format == "WEBP" else {}
    decoded = decode_bytes(encoded(image, file_format, **options))
    expected = np.asarray(image)
    if file_format == "WEBP" and mode == "L":  # WebP knows colour only
        expected = np.stack([expected] * 3, axis=-1)
    assert decoded.array.dtype == np.uint8 and decoded.value_range == (0.0, 255.0)
    assert np.array_equal(decoded.array, expected)


def test_jpeg() -> None:
    smooth = np.add.outer(np.arange(32), np.arange(48)).astype(np.uint8) * 2
    decoded = decode_bytes(encoded(Image.fromarray(smooth), "JPEG", quality=95))
    assert decoded.array.shape == (32, 48)
    assert np.abs(decoded.array.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_sixteen_bit_grey_keeps_all_levels(compression: str | None) -> None:
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    options = {"compression": compression} if compression else {}
    for data in (png16(ramp), encoded(Image.fromarray(ramp), "TIFF", **options)):
        decoded = decode_bytes(data)
        assert decoded.array.dtype == np.uint16 and np.array_equal(decoded.array, ramp)
        assert len(np.unique(decoded.array)) == 4096


def test_sixteen_bit_colour_keeps_all_levels() -> None:
    pixels = deep(9, 6, 3)
    for data in (png16(pixels), tiff(pixels), tiff(pixels, compression="zlib")):
        decoded = decode_bytes(data)
        assert decoded.photometric == "RGB"
        assert decoded.array.dtype == np.uint16 and np.array_equal(decoded.array, pixels)
    planar = tiff(np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")
    assert np.array_equal(decode_bytes(planar).array, pixels)


@pytest.mark.parametrize("channels", [2, 4])
def test_sixteen_bit_alpha_is_on_black(channels: int) -> None:
    pixels = deep(4, 5, channels)
    decoded = decode_bytes(png16(pixels)).array
    decoded = decoded if decoded.ndim == 3 else decoded[..., None]
    for index in np.ndindex(4, 5, channels - 1):
        alpha = int(pixels[index[0], index[1], -1])
        assert abs(int(decoded[index]) - int(pixels[index]) * alpha / 65535) <= 0.5


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_eight_bit_alpha_is_on_black(mode: str) -> None:
    pixels = RNG.integers(0, 256, (4, 5, len(mode))).astype(np.uint8)
    decoded = decode_bytes(encoded(Image.fromarray(pixels), "PNG")).array
    decoded = decoded if decoded.ndim == 3 else decoded[..., None]
    wanted = pixels[..., :-1].astype(float) * pixels[..., -1:] / 255
    assert decoded.shape == wanted.shape and np.abs(decoded - wanted).max() <= 0.5


def test_palette_bilevel_and_cmyk() -> None:
    colours = Image.new("RGB", (6, 4), (200, 30, 90))
    palette = decode_bytes(encoded(colours.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"))
    assert palette.array.shape == (4, 6, 3) and palette.array[0, 0].tolist() == [200, 30, 90]
    bits = decode_bytes(encoded(Image.new("1", (6, 4), 1), "PNG"))
    assert bits.array.shape == (4, 6) and (bits.array == 255).all()
    cmyk = decode_bytes(encoded(colours.convert("CMYK"), "JPEG", quality=100)).array
    assert cmyk.shape == (4, 6, 3) and np.abs(cmyk[0, 0].astype(int) - (200, 30, 90)).max() <= 6
    clear = Image.new("P", (2, 2), 0)
    clear.putpalette([250, 250, 250])
    assert (decode_bytes(encoded(clear, "PNG", transparency=0)).array == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int16", "int32"])
def test_tiff_of_other_types(dtype: str) -> None:
    pixels = (RNG.normal(size=(5, 7)) * 100).astype(dtype)
    decoded = decode_bytes(tiff(pixels))
    assert decoded.array.dtype.kind == pixels.dtype.kind
    assert np.array_equal(decoded.array.astype(dtype), pixels)
    assert decoded.photometric == "MONOCHROME2"


def test_white_is_zero() -> None:
    pixels = deep(5, 7)
    decoded = decode_bytes(tiff(pixels, photometric="miniswhite"))
    assert decoded.photometric == "MONOCHROME1" and np.array_equal(decoded.array, pixels)
    shallow = (pixels >> 8).astype(np.uint8)
    turned = decode_bytes(tiff(shallow, photometric="miniswhite"))
    assert turned.photometric == "MONOCHROME2" and np.array_equal(turned.array, 255 - shallow)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    """Pillow's table of transpositions is the oracle, in 8 bit and in both 16-bit paths."""
    moves = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(stored)
    upright = np.asarray(image.transpose(moves[orientation]) if orientation > 1 else image)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_bytes(encoded(image, "PNG", exif=exif)).array, upright)
    grey16 = Image.fromarray(stored.astype(np.uint16) * 1000)
    data = encoded(grey16, "TIFF", tiffinfo={274: orientation})
    assert np.array_equal(decode_bytes(data).array, upright.astype(np.uint16) * 1000)
    colour = np.stack([stored] * 3, axis=-1).astype(np.uint16) * 1000
    data = tiff(colour, extratags=[(274, "H", 1, orientation, True)])
    assert np.array_equal(decode_bytes(data).array[..., 1], upright.astype(np.uint16) * 1000)


def test_frames(tmp_path: Path) -> None:
    pages = [Image.new("L", (3, 2), value) for value in (10, 20, 30)]
    path = tmp_path / "stack.tif"
    path.write_bytes(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert read_image(path, 2).array[0, 0] == 30 and read_image(path, 2).frames == 3
    with pytest.raises(DataError, match="3 frames; give --frames"):
        read_image(path)
    with pytest.raises(DataError, match="no frame 3"):
        read_image(path, 3)
    colour = tmp_path / "colour.tif"
    colour.write_bytes(tiff(deep(2, 4, 4, 3), photometric="rgb"))
    assert read_image(colour, 1).array.shape == (4, 4, 3)
    with pytest.raises(DataError, match="2 frames"):
        read_image(colour)


def test_one_pixel() -> None:
    assert decode_bytes(encoded(Image.new("L", (1, 1), 7), "PNG")).array.tolist() == [[7]]


def bomb(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 0) + b"IDAT"


def damaged() -> dict[str, tuple[bytes, str]]:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    grey16 = Image.fromarray(deep(64, 64))
    colour16 = png16(deep(64, 64, 3))
    half: dict[str, bytes] = {
        f"half.{name.lower()}": encoded(noise, name)
        for name in ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
    }
    half |= {"half16.png": encoded(grey16, "PNG"), "colour16.png": colour16}
    half |= {"half16.tif": encoded(grey16, "TIFF"), "colour16.tif": tiff(deep(64, 64, 3))}
    half |= {"lzw.tif": encoded(grey16, "TIFF", compression="tiff_lzw")}
    cases = {name: (data[: int(len(data) * 0.6)], ".") for name, data in half.items()}
    cases["empty.png"] = (b"", "empty file")
    cases["text.png"] = (b"<html>not found</html>", "not a readable PNG")
    cases["bomb.png"] = (bomb(60000, 60000), "[Bb]omb")
    cases["large.png"] = (bomb(12000, 9000), "12000 x 9000 pixels")
    cases["nan.tif"] = (tiff(np.full((4, 4), np.nan, np.float32)), "NaN")
    cases["header.tif"] = (b"II*\0\x08\0\0\0", ".")
    return cases


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", damaged())
def test_damaged_files_have_a_reason_without_path(tmp_path: Path, name: str) -> None:
    data, message = damaged()[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(caught.value) and str(tmp_path) not in str(caught.value)


def test_missing_file_has_a_reason_without_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^No such file or directory$"):
        read_image(tmp_path / "none.png")


def test_lack_of_memory_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(data: bytes, frame: int | None) -> DecodedImage:
        raise MemoryError

    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(decode, "decode_bytes", full)
    with pytest.raises(DataError, match=r"^not enough memory to decode it$"):
        read_image(tmp_path / "a.png")


def test_readers_of_plugins(tmp_path: Path) -> None:
    def read(path: Path, frame: int | None) -> DecodedImage:
        if frame == 1:
            raise ValueError("secret patient name")
        shape = (2, 2) if frame is None else (2, 2, 2, 2)
        return DecodedImage(array=np.ones(shape, np.int16), value_range=(-1024.0, 3071.0))

    short, long = (Format(name=e, extensions=(e,), read=read) for e in (".gz", ".nii.gz"))
    readers = Readers([short, long])
    assert readers.find(Path("A.NII.GZ")) is long and readers.find(Path("a.png")) is None
    path = tmp_path / "a.nii.gz"
    assert read_image(path, None, readers).value_range == (-1024.0, 3071.0)
    with pytest.raises(DataError, match=r"^its reader failed with ValueError$"):
        read_image(path, 1, readers)
    with pytest.raises(DataError, match="shape"):
        read_image(path, 0, readers)
