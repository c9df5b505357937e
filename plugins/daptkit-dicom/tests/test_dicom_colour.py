"""Colours of files of known pixels: RGB, YBR, palettes, baseline JPEG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import convert_color_space
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from daptkit.errors import DataError
from dicom_files import NATIVE, need_encoder, read, rewrite, write_dicom

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("syntax", [*NATIVE, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_rgb(tmp_path: Path, syntax: str, dtype: str) -> None:
    need_encoder(syntax)
    size = (2, 33, 35, 3) if syntax == JPEG2000Lossless else (2, 5, 7, 3)
    stored = RNG.integers(0, np.iinfo(dtype).max, size, endpoint=True).astype(dtype)
    path = write_dicom(
        tmp_path / "a.dcm", stored, photometric="RGB", bits=None, transfer_syntax=syntax
    )
    image = read(path, 1)
    assert image.photometric == "RGB" and image.array.dtype == dtype
    assert np.array_equal(image.array, stored[1])
    assert image.value_range == (0, np.iinfo(dtype).max)
    assert image.display == (dtype == "uint16")  # the host fits no window to colours


def test_planes_of_colours(tmp_path: Path) -> None:
    stored = RNG.integers(0, 256, (5, 6, 3)).astype(np.uint8)
    path = write_dicom(tmp_path / "a.dcm", stored, photometric="RGB")
    planes = np.ascontiguousarray(np.moveaxis(stored, -1, 0)).tobytes()
    rewrite(path, PlanarConfiguration=1, PixelData=planes)
    assert np.array_equal(read(path).array, stored)
    rewrite(path, PlanarConfiguration=None)
    with pytest.raises(DataError, match="the header has no PlanarConfiguration"):
        read(path)


def test_ybr_is_rgb(tmp_path: Path) -> None:
    rgb = np.full((4, 6, 3), (200, 30, 90), np.uint8)
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    path = write_dicom(tmp_path / "a.dcm", ybr, photometric="YBR_FULL")
    image = read(path)
    assert image.photometric == "RGB" and np.abs(image.array.astype(int) - rgb).max() <= 2
    # PS3.3 C.7.6.3.1.2: two pixels share their colour, Y Y B R.
    halves = ybr[:, ::2], ybr[:, 1::2]
    words = np.stack([halves[0][..., 0], halves[1][..., 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], -1)
    rewrite(path, PhotometricInterpretation="YBR_FULL_422", PixelData=words.tobytes())
    assert np.abs(read(path).array.astype(int) - rgb).max() <= 2
    rewrite(path, PixelData=ybr.tobytes())
    with pytest.raises(DataError, match="a third too long"):
        read(path)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_baseline_jpeg(tmp_path: Path, mode: str) -> None:
    smooth = np.add.outer(np.arange(32), np.arange(48)).astype(np.uint8) * 2
    picture = Image.fromarray(smooth).convert(mode)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95)
    path = write_dicom(
        tmp_path / "a.dcm",
        np.asarray(picture),
        photometric="MONOCHROME2" if mode == "L" else "YBR_FULL_422",
    )
    rewrite(path, TransferSyntaxUID=JPEGBaseline8Bit, PixelData=encapsulate([stream.getvalue()]))
    image = read(path)
    assert image.array.shape == np.asarray(picture).shape
    assert np.abs(image.array.astype(int) - np.asarray(picture)).max() <= 6


@pytest.mark.parametrize("depth", [8, 16])
def test_palette(tmp_path: Path, depth: int) -> None:
    stored = RNG.integers(0, 12, (5, 7)).astype(np.uint8)
    colours = RNG.integers(0, 2**depth, (3, 8)).astype(f"<u{depth // 8}")
    names = ("Red", "Green", "Blue")
    tables: dict[str, Any] = {
        f"{name}PaletteColorLookupTableData": table.tobytes()
        for name, table in zip(names, colours, strict=True)
    }
    tables |= {f"{name}PaletteColorLookupTableDescriptor": [8, 2, depth] for name in names}
    path = write_dicom(tmp_path / "a.dcm", stored, photometric="PALETTE COLOR", **tables)
    wanted = colours[:, (stored.astype(int) - 2).clip(0, 7)] >> (depth - 8)
    image = read(path)
    assert image.photometric == "RGB" and image.array.dtype == np.uint8
    assert np.array_equal(image.array, np.moveaxis(wanted, 0, -1))
    bare = write_dicom(tmp_path / "b.dcm", stored, photometric="PALETTE COLOR")
    with pytest.raises(DataError, match="without a palette"):
        read(bare)


@pytest.mark.parametrize(
    ("photometric", "elements", "reason"),
    [
        ("HSV", {}, "HSV pixels of shape"),
        ("RGB", {"PhotometricInterpretation": "MONOCHROME2"}, "MONOCHROME2 pixels of shape"),
        ("RGB", {"PixelRepresentation": 1}, "RGB pixels of shape .* int8"),
        ("SEPIA", {}, "an unknown PhotometricInterpretation"),
        ("MONOCHROME2", {"PhotometricInterpretation": ""}, "has no PhotometricInterpretation"),
    ],
)
def test_other_colours_are_refused(
    tmp_path: Path, photometric: str, elements: dict[str, Any], reason: str
) -> None:
    stored = np.zeros((4, 4, 3) if photometric == "RGB" else (4, 4), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", stored, photometric=photometric, **elements)
    with pytest.raises(DataError, match=reason):
        read(path)
