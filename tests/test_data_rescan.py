"""From decoded pixels to the files of a simulated site: scales, depths and PNG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from daptkit.data.decode import decode_bytes
from daptkit.data.encode import encode_png
from daptkit.data.image import DecodedImage
from daptkit.data.pixels import type_range
from daptkit.data.rescan import Rescanner, pixel_kind, site_scales
from daptkit.errors import DataError, UsageError
from daptkit.scanner import ScannerShift

SAME = ScannerShift()


def decoded(array: np.ndarray, **fields: Any) -> DecodedImage:
    return DecodedImage(array=array, **{"value_range": type_range(array.dtype), **fields})


def rescanned(image: DecodedImage, windows: dict[str, Any], **shift: float) -> np.ndarray:
    return Rescanner(ScannerShift(**shift), site_scales(windows), 0).rescan(image, 0)


def levels(dtype: type, low: float, high: float, *shape: int) -> np.ndarray:
    values = np.random.default_rng(0).uniform(low, high, shape or (40, 30))
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1), (1, 9, 3)])
def test_a_png_gives_back_the_same_pixels(dtype: type, shape: tuple[int, ...]) -> None:
    pixels = levels(dtype, 0, np.iinfo(dtype).max, *shape)
    found = decode_bytes(encode_png(pixels)).array
    assert found.dtype == dtype
    assert np.array_equal(found, pixels)


def test_a_deep_grey_png_is_readable_elsewhere() -> None:
    pixels = levels(np.uint16, 0, 65535)
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        image.verify()
    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert image.mode.startswith("I;16")
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2), np.float32)])
def test_what_no_png_holds(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no PNG holds"):
        encode_png(pixels)


def test_8_bit_images_stay_8_bit_and_unchanged() -> None:
    grey, colour = levels(np.uint8, 0, 255), levels(np.uint8, 0, 255, 6, 5, 3)
    for windows in ({}, {"int": (0.0, 4095.0)}):
        for pixels in (grey, colour):
            found = rescanned(decoded(pixels), windows)
            assert found.dtype == np.uint8
            assert np.array_equal(found, pixels)


def test_a_single_channel_becomes_grey() -> None:
    pixels = levels(np.uint8, 0, 255, 4, 4, 1)
    assert np.array_equal(rescanned(decoded(pixels), {}), pixels[..., 0])


def test_unsigned_deep_pixels_keep_their_values_and_their_levels() -> None:
    pixels = levels(np.uint16, 100, 4000)
    window = {"int": (150.5, 3800.0)}
    found = rescanned(decoded(pixels), window)
    assert found.dtype == np.uint16
    assert np.array_equal(found, np.round(pixels.clip(150.5, 3800.0)).astype(np.uint16))
    assert len(np.unique(found)) > 250
    assert site_scales(window)["int"].kept


@pytest.mark.parametrize(
    ("pixels", "kind", "window"),
    [
        (levels(np.int16, -1000, 400), "int", (-1000.0, 400.0)),
        (levels(np.float32, 0, 3), "float", (0.0, 3.0)),
        (levels(np.uint32, 0, 200000), "int", (0.0, 200000.0)),
    ],
)
def test_what_no_png_holds_is_spread_over_16_bits(
    pixels: np.ndarray, kind: str, window: tuple[float, float]
) -> None:
    image, scale = decoded(pixels), site_scales({kind: window})[kind]
    found = rescanned(image, {kind: window})
    low, high = window
    wanted = 65535 * (pixels.astype(np.float64) - low) / (high - low)
    assert found.dtype == np.uint16
    assert found == pytest.approx(wanted.clip(0, 65535), abs=0.5)
    assert len(np.unique(found)) > 250
    assert not scale.kept
    assert scale.to_json() == {"read": list(window), "written": [0.0, 65535.0], "bits": 16}


def test_an_image_that_says_what_to_show_is_read_by_its_own_range() -> None:
    pixels = levels(np.int16, -160, 240)
    image = decoded(pixels, value_range=(-160.0, 240.0), display=True)
    assert pixel_kind(image) == "display"
    deep, shallow = rescanned(image, {"display": (0.0, 1.0)}), rescanned(image, {})
    assert (deep.dtype, shallow.dtype) == (np.uint16, np.uint8)
    assert deep == pytest.approx(65535 * (pixels + 160.0) / 400.0, abs=0.5)
    assert shallow == pytest.approx(255 * (pixels + 160.0) / 400.0, abs=0.5)
    assert site_scales({})["display"].to_json()["read"] == "each image's own"
    assert site_scales({})["display"].kept
    assert not site_scales({"display": (0.0, 1.0)})["display"].kept


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_monochrome1_is_inverted_before_the_scanner_sees_it(dtype: type) -> None:
    top = np.iinfo(dtype).max
    pixels = levels(dtype, 0, top)
    windows = {"int": (0.0, 65535.0)}
    twin = rescanned(decoded(top - pixels), windows, gamma=1.5, offset=0.1)
    found = rescanned(decoded(pixels, photometric="MONOCHROME1"), windows, gamma=1.5, offset=0.1)
    assert np.abs(found.astype(np.int64) - twin).max() <= 1
    assert not np.array_equal(found, rescanned(decoded(pixels), windows, gamma=1.5, offset=0.1))


def test_a_shift_acts_on_levels_and_not_on_pixel_values() -> None:
    flat = np.full((4, 4), 1050, np.uint16)
    found = rescanned(decoded(flat), {"int": (50.0, 2050.0)}, contrast=0.5, offset=0.25)
    assert (found == 1050).all()  # 0.25 + 0.5 * 0.5 of the way from 50 to 2050


def test_a_depth_that_was_not_sampled_names_the_next_step() -> None:
    with pytest.raises(DataError, match=r"uint16 pixels.*name a --window"):
        rescanned(decoded(levels(np.uint16, 0, 9)), {})


@pytest.mark.parametrize("channels", [2, 4])
def test_channels_that_a_png_does_not_hold(channels: int) -> None:
    with pytest.raises(DataError, match=f"{channels} channels, and a PNG holds 1 or 3"):
        rescanned(decoded(levels(np.uint8, 0, 255, 4, 4, channels)), {})


def test_a_stain_on_a_grey_image_is_refused() -> None:
    with pytest.raises(UsageError, match="a stain changes colours, and there are grey images"):
        rescanned(decoded(levels(np.uint8, 0, 255)), {}, stain=0.3)


def test_the_stain_is_the_sites_and_the_noise_the_images() -> None:
    shift = ScannerShift(stain=0.4, noise=0.02)
    colour = decoded(levels(np.uint8, 0, 255, 20, 20, 3))
    one, again, other = (Rescanner(shift, site_scales({}), seed) for seed in (0, 0, 1))
    assert one.stain is not None and again.stain is not None and other.stain is not None
    assert np.array_equal(one.stain.mixing, again.stain.mixing)
    assert not np.array_equal(one.stain.mixing, other.stain.mixing)
    assert np.array_equal(one.rescan(colour, 3), again.rescan(colour, 3))
    assert not np.array_equal(one.rescan(colour, 3), one.rescan(colour, 4))
    assert Rescanner(SAME, site_scales({}), 0).stain is None
