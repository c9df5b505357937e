"""Grey levels of files of known pixels: bits, signs, padding, and what contradicts itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from daptkit.data import Conversion
from daptkit.data.convert import convert_image
from daptkit.errors import DataError
from daptkit.reader import DecodedImage
from daptkit_dicom.plugin import DicomOptions
from daptkit_dicom.reader import read_frame
from dicom_files import NATIVE, lut, read_written, spanning, write_dicom

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 9)).astype(np.uint8)


def levels(image: DecodedImage) -> np.ndarray:
    """Return what the host makes of it, in 8-bit levels."""
    size = image.array.shape[0]
    windows = {"display": (0.0, 1.0)} if image.display else {}
    conversion = Conversion(img_size=size, in_chans=1, windows=windows)
    return convert_image(image, conversion)[0] * (255.0 if windows else 1.0)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("bits", "factor", "offset", "dtype"),
    [(8, 1, 0, "uint8"), (12, 16, 0, "uint16"), (16, 256, 0, "uint16"), (16, 200, -20000, "int16")],
)
def test_a_window_over_0_to_255_gives_the_png(
    tmp_path: Path, photometric: str, bits: int, factor: int, offset: int, dtype: str
) -> None:
    png = RNG.integers(0, 256, (16, 16)).astype(np.uint8)
    png[0, :2] = 0, 255
    bright = 255 - png if photometric == "MONOCHROME1" else png
    stored = (bright.astype(np.int64) * factor + offset).astype(dtype)
    image = read_written(
        tmp_path,
        stored,
        photometric=photometric,
        bits=bits,
        window=spanning(offset, 255 * factor + offset),
    )
    assert image.display and image.value_range == (0.0, 1.0) and image.array.dtype == np.float32
    assert image.photometric == photometric
    assert np.abs(levels(image) - png).max() < 1e-3


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_eight_bits_without_a_window_stay_bytes(tmp_path: Path, photometric: str) -> None:
    image = read_written(tmp_path, BYTES, photometric=photometric)
    assert image.array.dtype == np.uint8 and not image.display
    assert image.value_range == (0.0, 255.0) and np.array_equal(image.array, BYTES)
    square = read_written(tmp_path, BYTES[:6, :6], photometric=photometric)
    inverted = photometric == "MONOCHROME1"
    assert np.array_equal(levels(square), 255 - BYTES[:6, :6] if inverted else BYTES[:6, :6])


@pytest.mark.parametrize("bits", [1, 2, 4, 6])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_fewer_bits_span_black_to_white(tmp_path: Path, bits: int, dtype: str) -> None:
    stored = RNG.integers(0, 2**bits, (5, 7)).astype(dtype)
    image = read_written(tmp_path, stored, bits=bits)
    assert image.array.dtype == np.uint8
    assert np.abs(image.array - stored * 255.0 / (2**bits - 1)).max() <= 0.5


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "int32"])
def test_deep_values_without_a_window_are_the_stored_ones(
    tmp_path: Path, syntax: str, dtype: str
) -> None:
    limits = np.iinfo(dtype)
    stored = RNG.integers(limits.min, limits.max, (5, 7), dtype=dtype, endpoint=True)
    image = read_written(tmp_path, stored, bits=None, transfer_syntax=syntax)
    assert image.array.dtype == np.dtype(dtype) and image.array.dtype.isnative
    assert np.array_equal(image.array, stored) and not image.display
    assert image.value_range == (limits.min, limits.max)


@pytest.mark.parametrize(("dtype", "keyword"), [("float32", "Float"), ("float64", "DoubleFloat")])
def test_float_pixels(tmp_path: Path, dtype: str, keyword: str) -> None:
    stored = RNG.normal(size=(5, 7)).astype(dtype)
    stored[2, 3] = -1e5
    image = read_written(tmp_path, stored, **{f"{keyword}PixelPaddingValue": -1e5})
    padding = stored == -1e5
    assert image.value_range == (-math.inf, math.inf)
    assert np.array_equal(image.array[~padding], stored[~padding])
    assert image.array[2, 3] == stored[~padding].min()
    shown = read_written(tmp_path, stored, window=(0.0, 2.0), VOILUTFunction="LINEAR_EXACT")
    np.testing.assert_allclose(shown.array, (stored / 2 + 0.5).clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window_of", [None, spanning(0, 4095)])
def test_padding_is_the_darkest_level(
    tmp_path: Path, photometric: str, window_of: tuple[float, float] | None
) -> None:
    stored = RNG.integers(100, 4000, (8, 8)).astype(np.uint16)
    mask = np.zeros((8, 8), bool)
    mask[:2], mask[5, 5] = True, True
    stored[:2], stored[5, 5] = 2000, 2003  # in the middle of the grey levels
    stored[~mask & (stored >= 2000) & (stored <= 2004)] = 1999
    image = read_written(
        tmp_path,
        stored,
        photometric=photometric,
        window=window_of,
        PixelPaddingValue=2000,
        PixelPaddingRangeLimit=2004,
    )
    dark = image.array.max() if photometric == "MONOCHROME1" else image.array.min()
    assert (image.array[mask] == dark).all()
    if window_of is None:
        kept = stored[~mask]
        assert dark == (kept.max() if photometric == "MONOCHROME1" else kept.min())
        assert np.array_equal(image.array[~mask], kept)
    else:
        assert dark == (1.0 if photometric == "MONOCHROME1" else 0.0)
        np.testing.assert_allclose(image.array[~mask], stored[~mask] / 4095.0, atol=1e-6)


def test_padding_is_found_before_the_slope_and_under_the_other_sign(tmp_path: Path) -> None:
    stored = np.array([[-2000, 0, 5], [10, 20, -2000]], np.int16)
    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    for value, vr in ((-2000, "SS"), (63536, "US")):
        path = tmp_path / "a.dcm"
        element = Dataset()
        element.add_new("PixelPaddingValue", vr, value)
        write_dicom(path, stored, bits=16, **rescale, PixelPaddingValue=element[0x00280120])
        image = read_frame(path, None, DicomOptions())
        assert image.array.tolist() == [[-1024, -1024, -1019], [-1014, -1004, -1024]]


def test_all_padding_is_left_alone(tmp_path: Path) -> None:
    stored = np.full((3, 3), 7, np.uint16)
    assert (read_written(tmp_path, stored, PixelPaddingValue=7).array == 7).all()


@pytest.mark.parametrize("signed", [False, True])
def test_values_in_the_middle_of_their_words(tmp_path: Path, signed: bool) -> None:
    low = -(2**9) if signed else 0
    stored = RNG.integers(low, low + 2**10, (5, 7)).astype(np.int16 if signed else np.uint16)
    words = (stored.astype(np.int64) << 4) & 0x3FFF
    # Bits around the stored ones may hold an overlay.
    words |= RNG.integers(0, 16, (5, 7)) | (RNG.integers(0, 4, (5, 7)) << 14)
    raw = words.astype(np.uint16).view(np.int16 if signed else np.uint16)
    image = read_written(tmp_path, raw, bits=10, HighBit=13)
    assert np.array_equal(image.array, stored)
    assert image.value_range == (low, low + 2**10 - 1)
    plain = (stored.astype(np.int64) & 0x3FF) | (RNG.integers(0, 64, (5, 7)) << 10)
    raw = plain.astype(np.uint16).view(np.int16 if signed else np.uint16)
    assert np.array_equal(read_written(tmp_path, raw, bits=10).array, stored)


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"WindowCenter": 5}, "differ in number"),
        ({"WindowCenter": [5, 6], "WindowWidth": 5}, "differ in number"),
        ({"window": (5, 0)}, r"WindowWidth is too small; --reader-options dicom.voi=off"),
        ({"window": (5, 0), "VOILUTFunction": "SIGMOID"}, "WindowWidth is too small"),
        ({"window": (5, 9), "VOILUTFunction": "CUBIC"}, "unknown VOILUTFunction"),
        ({"RescaleSlope": 2}, "only one of RescaleSlope"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope is 0"),
        ({"RescaleSlope": [1, 2], "RescaleIntercept": 0}, "RescaleSlope has more than one"),
        ({"HighBit": 15, "BitsAllocated": 8}, "HighBit contradicts"),
        ({"HighBit": 2}, "HighBit contradicts"),
        ({"VOILUTSequence": [lut([1, 2, 300], 0, 8)]}, "higher values than its descriptor"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, elements: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_written(tmp_path, BYTES, **elements)


def test_a_lut_that_is_too_short_is_refused(tmp_path: Path) -> None:
    item = lut([1, 2, 3], 0, 8)
    item.LUTDescriptor = [4, 0, 8]
    with pytest.raises(DataError, match="LUT is shorter"):
        read_written(tmp_path, BYTES, VOILUTSequence=[item])
    item.LUTDescriptor = [3, 0]
    with pytest.raises(DataError, match="malformed LUTDescriptor"):
        read_written(tmp_path, BYTES, VOILUTSequence=[item])
