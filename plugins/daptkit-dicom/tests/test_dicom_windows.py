"""Grey levels of files of known pixels: modality LUT, windows, VOI LUT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing

from daptkit.errors import DataError
from daptkit_dicom.grey import window
from dicom_files import NATIVE, lut, read_written

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 9)).astype(np.uint8)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1, -1024, "int32"), (2, 7, "int32"), (-1, 0, "int32"), (0.684, 200, "float32")],
)
def test_rescale(tmp_path: Path, slope: float, intercept: float, dtype: str) -> None:
    stored = RNG.integers(0, 4096, (5, 7)).astype(np.uint16)
    image = read_written(tmp_path, stored, RescaleSlope=slope, RescaleIntercept=intercept)
    assert image.array.dtype == dtype and not image.display
    np.testing.assert_allclose(image.array, stored.astype(float) * slope + intercept, rtol=1e-6)
    edges = (intercept, 4095 * slope + intercept)
    assert image.value_range == pytest.approx((min(edges), max(edges)))


def test_wide_rescale_keeps_every_integer(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 2**32 - 1]], np.uint32)
    image = read_written(tmp_path, stored, bits=None, RescaleSlope=3, RescaleIntercept=-1)
    assert image.array.tolist() == [[-1, 2, 3 * (2**32 - 1) - 1]]


def test_window_is_applied_after_the_slope(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (5, 7)).astype(np.uint16)
    image = read_written(tmp_path, stored, window=(40, 400), RescaleSlope=1, RescaleIntercept=-1024)
    wanted = ((stored - 1024.0 - 39.5) / 399 + 0.5).clip(0, 1)
    np.testing.assert_allclose(image.array, wanted, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize("slope", [None, 0.5, -2.0])
def test_windows_are_pydicoms(function: str, dtype: str, slope: float | None) -> None:
    values = RNG.integers(-2000 if dtype == "int16" else 0, 4000, (8, 8)).astype(dtype)
    dataset = Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsStored, dataset.PixelRepresentation = 14, int(dtype == "int16")
    dataset.WindowCenter, dataset.WindowWidth = 600.5, 1601.0
    dataset.VOILUTFunction = function
    low, high = (-(2**13), 2**13 - 1) if dtype == "int16" else (0, 2**14 - 1)
    if slope is not None:
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, 10.0
        low, high = low * slope + 10.0, high * slope + 10.0
    modality = apply_modality_lut(values, dataset)
    wanted = (apply_windowing(modality, dataset) - low) / (high - low)
    np.testing.assert_allclose(window(modality, 600.5, 1601.0, function), wanted, atol=1e-9)


def test_windows_are_the_standards_formula() -> None:
    """PS3.3 C.11.2.1.2.1, in its own words, for the width 1 and a few more."""
    for center, width in ((10.0, 1.0), (10.0, 2.0), (2048.0, 4096.0), (0.0, 100.0)):
        for x in (-50.0, 9.0, 9.5, 10.0, 10.5, 11.0, 2048.0, 5000.0):
            if x <= center - 0.5 - (width - 1) / 2:
                wanted = 0.0
            elif x > center - 0.5 + (width - 1) / 2:
                wanted = 1.0
            else:
                wanted = (x - (center - 0.5)) / (width - 1) + 0.5
            assert window(np.array([x]), center, width)[0] == pytest.approx(wanted)
    steep = window(np.array([-1e9, 0.0, 1e9]), 0, 0.001, "SIGMOID")
    assert steep.tolist() == pytest.approx([0.0, 0.5, 1.0])


def test_one_of_several_windows(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (5, 7)).astype(np.uint16)
    several = {"WindowCenter": [600, 2000], "WindowWidth": [100, 3000]}
    for index in (0, 1):
        image = read_written(tmp_path, stored, {"voi_index": index}, **several)
        center, width = several["WindowCenter"][index], several["WindowWidth"][index]
        wanted = ((stored - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)
        np.testing.assert_allclose(image.array, wanted, atol=1e-6)
    with pytest.raises(DataError, match="no window or VOI LUT 2; the file has 2"):
        read_written(tmp_path, stored, {"voi_index": 2}, **several)


def test_voi_off_reads_the_values_before_it(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (5, 7)).astype(np.uint16)
    image = read_written(tmp_path, stored, {"voi": "off"}, window=(0, 0))
    assert not image.display and np.array_equal(image.array, stored)


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize(("bits", "top"), [(8, 255), (12, 4095), (16, 65535)])
def test_voi_lut(tmp_path: Path, syntax: str, bits: int, top: int) -> None:
    stored = RNG.integers(0, 4096, (5, 7)).astype(np.uint16)
    entries = [round(top * (i / 999) ** 2) for i in range(1000)]
    sequence = [lut(entries, 500, bits)]
    image = read_written(
        tmp_path, stored, window=(1, 2), VOILUTSequence=sequence, transfer_syntax=syntax
    )
    wanted = np.array(entries)[(stored.astype(int) - 500).clip(0, 999)] / top
    np.testing.assert_allclose(image.array, wanted, atol=1e-6)
    assert image.display
    if bits > 8:  # pydicom keeps indices above 255 in bytes for a LUT of bytes
        dataset = Dataset()
        dataset.VOILUTSequence = sequence
        np.testing.assert_allclose(apply_voi_lut(stored, dataset) / top, wanted)


@pytest.mark.parametrize("syntax", NATIVE)
def test_modality_lut_before_a_voi_lut(tmp_path: Path, syntax: str) -> None:
    stored = RNG.integers(-100, 300, (5, 7)).astype(np.int16)
    first = [7 * i for i in range(256)]
    second = [min(2000 - i, 1023) for i in range(1800)]
    modality, voi = lut(first, -50, 16), lut(second, 0, 10)
    image = read_written(
        tmp_path,
        stored,
        bits=None,
        ModalityLUTSequence=[modality],
        RescaleSlope=3,
        RescaleIntercept=0,
        transfer_syntax=syntax,
    )
    values = np.array(first)[(stored.astype(int) + 50).clip(0, 255)]
    assert np.array_equal(image.array, values) and image.value_range == (0.0, 65535.0)
    both = read_written(
        tmp_path, stored, ModalityLUTSequence=[modality], VOILUTSequence=[voi], bits=None
    )
    np.testing.assert_allclose(both.array, np.array(second)[values] / 1023, atol=1e-6)


def test_a_lut_from_a_negative_value_that_was_written_unsigned(tmp_path: Path) -> None:
    stored = RNG.integers(0, 2000, (5, 7)).astype(np.uint16)
    item = lut(list(range(1000)), 2**16 - 500, 10)
    image = read_written(
        tmp_path, stored, RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=[item]
    )
    wanted = (stored - 1024.0 + 500).clip(0, 999) / 1023
    np.testing.assert_allclose(image.array, wanted, atol=1e-6)


def test_lut_bytes_in_words_and_bytes(tmp_path: Path) -> None:
    stored = np.arange(16, dtype=np.uint8).reshape(4, 4)
    entries = [17 * (15 - i) for i in range(16)]
    for data in (np.array(entries, "<u2").tobytes(), bytes(entries)):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [16, 0, 8])
        item.add_new("LUTData", "OW", data)
        image = read_written(tmp_path, stored, VOILUTSequence=[item])
        np.testing.assert_allclose(image.array, (15 - stored) / 15.0, atol=1e-6)
