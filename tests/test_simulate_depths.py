"""A second site keeps the depth and the scale of the images it is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import daptkit
from daptkit.data import DecodedImage
from daptkit.data.decode import read_image
from daptkit.data.readers import Format, Readers
from daptkit.recipes import simulating
from simulated import noise_image, site, truth_of


def test_deep_images_keep_their_depth_and_their_scale(tmp_path: Path) -> None:
    images = [noise_image(n, 4095, (40, 40)) for n in range(6)]
    out = daptkit.simulate(
        site(tmp_path / "old", images), out=tmp_path / "new", window="0:4095", shift={"gamma": 1.2}
    ).out
    found = read_image(out / "images" / "000002.png").array
    assert found.dtype == np.uint16
    assert len(np.unique(found)) > 250
    wanted = 4095 * (images[2] / 4095) ** 1.2
    assert found == pytest.approx(wanted, abs=0.5)
    assert truth_of(out)["levels"] == {
        "int": {"read": [0.0, 4095.0], "written": [0.0, 4095.0], "bits": 16}
    }


def test_deep_colour_and_8_bit_in_one_site(tmp_path: Path) -> None:
    images = [noise_image(0, 65535, (9, 8, 3)), noise_image(1)] * 2
    result = daptkit.simulate(
        site(tmp_path / "old", images), out=tmp_path / "new", window="0:65535"
    )
    for number, pixels in enumerate(images):
        found = read_image(result.out / "images" / f"{number:06d}.png").array
        assert found.dtype == pixels.dtype
        assert np.array_equal(found, pixels)


def test_percentiles_are_the_window_where_none_is_named(tmp_path: Path) -> None:
    images = [noise_image(n, 1000, (30, 30)) for n in range(4)]
    result = daptkit.simulate(site(tmp_path / "old", images), out=tmp_path / "new")
    low, high = truth_of(result.out)["levels"]["int"]["read"]
    assert [low, high] == pytest.approx(np.percentile(images, [0.5, 99.5]))
    found = read_image(result.out / "images" / "000000.png").array
    assert np.array_equal(found, np.round(images[0].clip(low, high)))


def test_negative_pixels_get_a_scale_of_their_own_and_the_advice_to_make_the_source_alike(
    tmp_path: Path,
) -> None:
    pixels = np.random.default_rng(0).integers(-1000, 400, (8, 6, 5)).astype(np.int16)
    labels = np.arange(8) % 2
    np.savez(tmp_path / "old.npz", train_images=pixels, train_labels=labels)
    result = daptkit.simulate(tmp_path / "old.npz", out=tmp_path / "new", window="-1000:400")
    found = read_image(result.out / "images" / "000003.png").array
    assert found == pytest.approx(65535 * (pixels[3] + 1000.0) / 1400, abs=0.5)
    assert "different pixel values for black and white" in result.summary


def test_an_inverted_plugin_format_is_turned_upright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "old"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        (folder / label / "x.ray").write_bytes(b"")
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)

    def read(path: Path, frame: int | None) -> DecodedImage:
        return DecodedImage(array=ramp, value_range=(0.0, 255.0), photometric="MONOCHROME1")

    readers = Readers([Format(name="ray", extensions=(".ray",), read=read)])
    monkeypatch.setattr(simulating, "plugin_readers", lambda log, options: readers)
    out = daptkit.simulate(folder, out=tmp_path / "new").out
    assert np.array_equal(np.asarray(Image.open(out / "images" / "000001.png")), 255 - ramp)
