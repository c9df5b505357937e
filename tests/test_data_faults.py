"""Bad and unusual images through what a run does: list, fit the conversion, decode."""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from daptkit.data import Conversion, ImageSet, fit_conversion, read_table
from daptkit.data.decode import read_image
from daptkit.errors import DataError
from make_images import chunk, encoded, png16, tiff

RNG = np.random.default_rng(5)
CANARY = "Quux^Canary"
SIZE = 16


def deep(*shape: int) -> np.ndarray:
    return RNG.integers(0, 65536, shape).astype(np.uint16)


def shallow(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def images_of(folder: Path, *, in_chans: int = 1, skip: int = 0, size: int = SIZE) -> ImageSet:
    """Read a folder of class folders as a run does."""
    table = read_table(folder, domain="source", labelled=True)
    conversion = fit_conversion([table], img_size=size, in_chans=in_chans)
    return ImageSet(table, conversion, skip_unreadable=skip)


def batch_of(images: ImageSet) -> np.ndarray:
    return images.batch(range(len(images))).numpy()


@pytest.mark.parametrize("top", [65535, 4095])
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_png_keeps_its_levels(tmp_path: Path, top: int, channels: int) -> None:
    """16 bit, and 12 bit in 16: of 4096 levels those inside the window stay apart."""
    ramp = np.linspace(0, top, 4096).astype(np.uint16).reshape(64, 64, 1).repeat(channels, axis=2)
    data = png16(ramp) if channels > 1 else encoded(ramp[..., 0], "PNG")
    out = batch_of(images_of(write(tmp_path, {"a/x.png": data}), in_chans=channels, size=64))
    assert out.dtype == np.float32 and len(np.unique(out)) > 4000
    low, high = np.percentile(ramp, [0.5, 99.5])
    wanted = ((ramp.astype(float) - low) / (high - low)).clip(0, 1).transpose(2, 0, 1)
    assert np.allclose(out[0], wanted, atol=1e-6)


def half(data: bytes) -> bytes:
    return data[: int(len(data) * 0.6)]


def bomb() -> bytes:
    """A small file that claims 3.6 billion pixels."""
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(2_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "half.png": (lambda: half(encoded(shallow(32, 32), "PNG")), "damaged|truncated"),
    "half16.png": (lambda: half(encoded(deep(32, 32), "PNG")), "damaged|truncated"),
    "colour16.png": (lambda: half(png16(deep(32, 32, 3))), "truncated"),
    "half.jpg": (lambda: half(encoded(shallow(32, 32, 3), "JPEG")), "damaged: .*truncated"),
    "half.tif": (lambda: half(encoded(shallow(32, 32), "TIFF")), "damaged: .*truncated"),
    "half.webp": (lambda: half(encoded(shallow(32, 32, 3), "WEBP")), "damaged|not a readable"),
    "half.bmp": (lambda: half(encoded(shallow(32, 32, 3), "BMP")), "damaged: .*truncated"),
    "empty.png": (lambda: b"", "^empty file$"),
    "text.png": (lambda: f"name,{CANARY}\n".encode(), "^not a readable PNG"),
    "page.jpg": (lambda: f"<html><title>{CANARY}".encode(), "^not a readable PNG"),
    "cine.png": (lambda: encoded(shallow(8, 8), "GIF", comment=CANARY), "^not a readable PNG"),
    "bomb.png": (bomb, "(?i)bomb|pixels"),
    "nan.tif": (lambda: tiff(np.full((8, 8), np.nan, np.float32)), "^pixels are NaN or infinite$"),
    "inf.tif": (lambda: tiff(np.full((8, 8), np.inf, np.float32)), "^pixels are NaN or infinite$"),
    "complex.tif": (lambda: tiff(np.ones((8, 8), np.complex64)), "^pixels of type complex64"),
    "pages.tif": (
        lambda: tiff(deep(3, 8, 8), photometric="minisblack"),
        "^3 frames; give --frames",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_or_left_out_and_never_replaced(tmp_path: Path, name: str) -> None:
    make, reason = BAD[name]
    good = {f"{label}/{n}.png": shallow(SIZE, SIZE) for label in "ac" for n in range(3)}
    write(tmp_path, {where: encoded(pixels, "PNG") for where, pixels in good.items()})
    write(tmp_path, {f"b/{name}": make(), "b/z.png": encoded(shallow(SIZE, SIZE), "PNG")})
    with pytest.raises(DataError, match=r"^1 unreadable image in the source") as caught:
        images_of(tmp_path)
    assert caught.value.exit_code == 3 and f"'b/{name}'" in str(caught.value)
    kept = images_of(tmp_path, skip=1)
    ((skipped, why),) = kept.skipped
    assert skipped == f"b/{name}" and len(kept) == 7
    assert re.search(reason, why)
    assert "\n" not in why and str(tmp_path) not in why and CANARY not in why
    batch = kept.batch(range(7)).numpy()[:, 0]
    for row, (where, label) in enumerate(
        zip(kept.table.names, kept.table.labels or (), strict=True)
    ):
        assert label == where[0]
        if where in good:
            assert np.array_equal(batch[row], good[where])


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"a/x.png": encoded(shallow(8, 8), "PNG")})
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / f"{CANARY}.png")
    kept = images_of(tmp_path, skip=1)
    assert kept.skipped == [("a/gone.png", "No such file or directory")]


FORMATS: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(shallow(20, 20), "PNG"),
    "png16": lambda: encoded(deep(20, 20), "PNG"),
    "png16 colour": lambda: png16(deep(20, 20, 3)),
    "jpeg": lambda: encoded(shallow(20, 20, 3), "JPEG"),
    "progressive": lambda: encoded(shallow(20, 20, 3), "JPEG", progressive=True),
    "bmp": lambda: encoded(shallow(20, 20), "BMP"),
    "webp": lambda: encoded(shallow(20, 20, 3), "WEBP"),
    "tiff": lambda: encoded(deep(20, 20), "TIFF"),
    "tiff lzw": lambda: encoded(shallow(20, 20, 3), "TIFF", compression="tiff_lzw"),
    "tiff colour": lambda: tiff(deep(20, 20, 3)),
    "tiff half": lambda: tiff(deep(20, 20).astype(np.float16), compression="zlib"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_anywhere_is_never_another_image(tmp_path: Path, name: str) -> None:
    data = FORMATS[name]()
    path = tmp_path / "x.img"
    path.write_bytes(data)
    whole = read_image(path).array
    refused = 0
    for end in [*range(1, len(data), max(1, len(data) // 40)), *range(len(data) - 20, len(data))]:
        path.write_bytes(data[:end])
        try:
            cut = read_image(path).array
        except DataError as error:
            refused += 1
            assert str(error).startswith(("damaged", "truncated", "not a readable"))
            assert "\n" not in str(error)
        else:
            assert np.array_equal(cut, whole)
    assert refused > 30


def test_one_picture_in_every_mode_is_one_input(tmp_path: Path) -> None:
    """L, LA, RGB, RGBA, palette, CMYK, 16 bit and float of a grey picture that spans its range."""
    grey = np.linspace(0, 255, SIZE * SIZE).round().astype(np.uint8).reshape(SIZE, SIZE)
    grey[0], grey[-1] = 0, 255  # so that percentiles are the extremes
    image = Image.fromarray(grey)
    modes = {f"a/{mode}.png": encoded(image.convert(mode), "PNG") for mode in ("L", "LA", "RGB")}
    modes |= {f"a/{mode}.png": encoded(image.convert(mode), "PNG") for mode in ("RGBA", "P")}
    modes["a/cmyk.tif"] = encoded(image.convert("RGB").convert("CMYK"), "TIFF")
    modes["a/cmyk.jpg"] = encoded(image.convert("RGB").convert("CMYK"), "JPEG", quality=100)
    modes["a/deep.png"] = encoded(grey.astype(np.uint16) * 257, "PNG")
    modes["a/deep_rgb.png"] = png16(np.stack([grey] * 3, axis=2).astype(np.uint16) * 257)
    modes["a/deep_la.png"] = png16(
        np.stack([grey.astype(np.uint16) * 257, np.full_like(grey, 65535, np.uint16)], axis=2)
    )
    modes["a/float.tif"] = tiff(grey.astype(np.float32) / 7 - 3)
    modes["a/white_is_zero.tif"] = tiff(255 - grey, photometric="miniswhite")
    for in_chans in (1, 3):
        images = images_of(write(tmp_path, modes), in_chans=in_chans)
        for name, pixels in zip(images.table.names, batch_of(images), strict=True):
            tolerance = 0.02 if name.endswith(".jpg") else 0.003
            assert np.abs(pixels - grey / 255).max() < tolerance, name


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    bits = RNG.integers(0, 2, (SIZE, SIZE)).astype(bool)
    files = {"a/x.png": encoded(bits, "PNG"), "a/y.tif": encoded(bits, "TIFF")}
    for pixels in batch_of(images_of(write(tmp_path, files))):
        assert np.array_equal(pixels[0], bits * np.uint8(255))


MOVES = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("orientation", MOVES)
def test_exif_rotation_of_every_depth(tmp_path: Path, orientation: int) -> None:
    stored = shallow(6, 10).repeat(8, axis=0).repeat(8, axis=1)  # whole blocks of a JPEG
    upright = MOVES[orientation](stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    extra = chunk(b"eXIf", exif.tobytes()[6:])
    colour = np.stack([stored.astype(np.uint16) * 257] * 3, axis=2)
    files = {
        "a/photo.jpg": encoded(stored, "JPEG", quality=100, exif=exif),
        "a/shallow.png": encoded(stored, "PNG", exif=exif),
        "a/deep.png": encoded(stored.astype(np.uint16) * 257, "PNG", exif=exif),
        "a/colour.png": png16(colour, extra=extra),
        "a/deep.tif": encoded(stored.astype(np.uint16) * 257, "TIFF", tiffinfo={274: orientation}),
    }
    write(tmp_path, files)
    for name in files:
        image = read_image(tmp_path / name)
        top = 255.0 if image.array.dtype == np.uint8 else 65535.0
        found = image.array[..., 1] if image.array.ndim == 3 else image.array
        assert found.shape == upright.shape, name
        assert np.abs(found / top - upright / 255).max() < 0.02, name
    write(tmp_path, {"a/upright.png": encoded(upright, "PNG")})
    table = read_table(tmp_path, domain="source", labelled=True)
    conversion = Conversion(img_size=SIZE, in_chans=1, windows={"int": (0.0, 65535.0)})
    *turned, wanted = batch_of(ImageSet(table, conversion))
    assert table.names[-1] == "a/upright.png"
    assert all(np.abs(pixels - wanted).max() < 0.02 for pixels in turned)


def same(shape: Sequence[int], value: int, dtype: Any) -> np.ndarray:
    return np.full(tuple(shape), value, dtype)


def test_constant_images(tmp_path: Path) -> None:
    files = {"a/flat.png": encoded(same((8, 8), 77, np.uint8), "PNG")}
    assert (batch_of(images_of(write(tmp_path / "eight", files))) == 77).all()
    files = {f"a/{n}.png": encoded(same((8, 8), 700, np.uint16), "PNG") for n in range(3)}
    deep_only = write(tmp_path / "deep", files)
    with pytest.raises(DataError, match="source are flat: 99% of their pixels are 700") as caught:
        images_of(deep_only)
    assert caught.value.exit_code == 3
    ramp = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = batch_of(images_of(write(deep_only, {"a/ramp.png": encoded(ramp, "PNG")})))
    assert np.isfinite(out).all() and all(len(np.unique(pixels)) == 1 for pixels in out[:3])


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 57), (200, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_any_shape_is_squared_without_new_values(
    tmp_path: Path, shape: tuple[int, int], dtype: Any
) -> None:
    square = np.linspace(0, np.iinfo(dtype).max, 64).astype(dtype).reshape(8, 8)
    odd = (RNG.uniform(0.3, 0.6, shape) * np.iinfo(dtype).max).astype(dtype)
    files = {"a/odd.png": encoded(odd, "PNG"), "a/square.png": encoded(square, "PNG")}
    images = images_of(write(tmp_path, files))
    found = batch_of(images)[0, 0] / (255 if dtype == np.uint8 else 1)
    low, high = images.conversion.windows.get("int", (0, 255))
    wanted = ((odd.astype(float) - low) / (high - low)).clip(0, 1)
    assert found.shape == (SIZE, SIZE)
    assert wanted.min() - 0.003 <= found.min() <= found.max() <= wanted.max() + 0.003
    assert found.mean() == pytest.approx(wanted.mean(), abs=0.06)
