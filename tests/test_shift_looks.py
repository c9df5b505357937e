"""Which property of images differs, and spectra against sums over frequencies."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest

from daptkit.errors import DataError
from daptkit.plugin import PROPERTIES
from daptkit.shift import compare_appearance, compare_looks, image_statistics, radial_spectrum
from daptkit.shift.looks import ORDER
from daptkit.shift.spectrum import power_spectrum


def pictures(n=40, size=32, seed=0, channels=3):
    """Return coloured blobs and fine stripes, each image of its own brightness."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    images = np.empty((n, channels, size, size))
    for i in range(n):
        cy, cx, r = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.1, 0.2)
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / r**2)
        depth = rng.uniform(0.3, 0.4) * np.array([0.9, 1.0, 0.6])[:channels]
        stripes = 0.07 * np.cos(np.pi / 2 * size * x + rng.uniform(0, 6))
        images[i] = rng.uniform(0.65, 0.75) - depth[:, None, None] * blob + stripes
    return np.clip(images + 0.01 * rng.normal(size=images.shape), 0, 1)


def looks(source, target, corrects=None):
    differences = compare_appearance(image_statistics(source), image_statistics(target))
    return {look.name: look for look in compare_looks(differences, corrects)}


def blurred(images):
    return (
        images + np.roll(images, 1, 2) + np.roll(images, 1, 3) + np.roll(images, (1, 1), (2, 3))
    ) / 4


def coarse(images):
    spectrum = np.fft.fft2(images)
    down, across = (np.abs(np.fft.fftfreq(n)) > 0.15 for n in images.shape[2:])
    spectrum[:, :, down], spectrum[:, :, :, across] = 0.0, 0.0
    return np.fft.ifft2(spectrum).real


def lit(images):
    ramp = 0.15 * np.cos(2 * np.pi * np.arange(images.shape[3]) / images.shape[3])
    return images + ramp


MADE = {
    "intensity": lambda x: x - 0.1,
    "contrast": lambda x: x.mean((2, 3), keepdims=True) + 0.6 * (x - x.mean((2, 3), keepdims=True)),
    "colour": lambda x: x + np.array([0.06, 0.0, -0.06])[:, None, None],
    "shading": lit,
    "sharpness": blurred,
    "noise": lambda x: x + 0.03 * np.random.default_rng(9).normal(size=x.shape),
    "resolution": coarse,
}


@pytest.mark.parametrize("name", MADE)
def test_a_made_difference_is_seen(name):
    source, target = pictures(seed=1), pictures(seed=2)
    corrects = {"for_it": frozenset({name}), "other": PROPERTIES - {name}, "none": frozenset()}
    same = looks(source, target, corrects)
    assert tuple(same) == ORDER
    assert not same[name].differs and not same[name].methods and not same[name].differing
    found = looks(source, MADE[name](target), corrects)[name]
    assert found.differs and found.methods == ("for_it",)
    assert abs(found.strongest.effect) > 0.6 and found.strongest.name in found.differing
    plain = found.to_json()
    assert plain["name"] == name and plain["strongest"]["effect"] == found.strongest.effect


def test_colour_is_not_brightness():
    source = pictures(seed=3)
    darker = looks(source, source - 0.1)
    assert darker["intensity"].differs
    assert not any(n.endswith("_balance") for n in darker["colour"].differing)
    tinted = looks(source, MADE["colour"](source))
    assert {"red_balance", "blue_balance"} <= set(tinted["colour"].differing)


def test_every_property_is_listed_and_covariates_are_none():
    assert frozenset(ORDER) == PROPERTIES
    grey = compare_appearance(
        {**image_statistics(pictures(channels=1)), "model": ["a"] * 40},
        {**image_statistics(pictures(channels=1, seed=5)), "model": ["b"] * 40},
    )
    found = compare_looks(grey)
    assert [look.name for look in found] == [name for name in ORDER if name != "colour"]
    assert not any(look.strongest.name == "model" for look in found)
    flat = {name: np.full(10, np.nan) for name in ("resolution", "noise")}
    (noise, resolution) = compare_looks(compare_appearance(flat, flat))
    assert not noise.differs and resolution.to_json()["strongest"]["effect"] is None


def test_statistics_of_channels():
    images = pictures(6)
    found = image_statistics(images)
    for place, name in enumerate(("red", "green", "blue")):
        channel = images[:, place].reshape(6, -1)
        np.testing.assert_allclose(found[f"{name}_spread"], channel.std(1))
        np.testing.assert_allclose(
            found[f"{name}_balance"], channel.mean(1) - images.reshape(6, -1).mean(1)
        )
    assert set(image_statistics(images[:, :2])) >= {"channel_1_balance", "channel_2_spread"}


def test_low_frequencies_are_a_share_of_the_power():
    x = np.arange(32)
    slow, fast = np.cos(2 * np.pi * x / 32), np.cos(2 * np.pi * 10 * x / 32)
    for weight, share in ((0.0, 0.0), (1.0, 0.5), (3.0, 0.9)):
        image = 0.5 + 0.05 * (weight * slow + fast) * np.ones((32, 1))
        found = image_statistics(image[None, None])["low_frequencies"][0]
        # A wave of one cycle leans on the window, which keeps less of it than of a fast one.
        assert found == pytest.approx(share, abs=0.15)
    assert math.isnan(image_statistics(np.full((1, 1, 8, 8), 0.5))["low_frequencies"][0])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 12)])
def test_spectrum_is_the_sum(height, width):
    image = np.random.default_rng(6).uniform(size=(height, width))
    frequency, power = power_spectrum(image[None])
    window = np.outer(np.hanning(height), np.hanning(width))
    seen = (image - image.mean()) * window
    expected = {}
    for u in range(height):
        for v in range(width):
            c = sum(
                seen[y, x] * cmath.exp(-2j * math.pi * (u * y / height + v * x / width))
                for y in range(height)
                for x in range(width)
            )
            radius = math.hypot(min(u, height - u) / height, min(v, width - v) / width)
            expected[round(radius, 9)] = expected.get(round(radius, 9), 0.0) + abs(c) ** 2
    found = {}
    for radius, value in zip(frequency, power[0], strict=True):
        found[round(radius, 9)] = found.get(round(radius, 9), 0.0) + value
    assert found == pytest.approx(expected)


def test_radial_spectrum():
    rng = np.random.default_rng(7)
    noise = 0.5 + 0.01 * rng.normal(size=(40, 1, 48, 48))
    frequency, level = radial_spectrum(noise)
    assert level.shape == (40, len(frequency)) and (np.diff(frequency) > 0).all()
    assert frequency[0] == pytest.approx(2 / 48, rel=0.2)
    # Noise is equally strong everywhere; log10 of a mean of few values lies a little lower.
    np.testing.assert_allclose(level.mean(0)[3:], -4.0, atol=0.15)
    wave = 0.5 + 0.2 * np.cos(2 * np.pi * 6 * np.arange(48) / 48) * np.ones((1, 1, 48, 1))
    top = frequency[radial_spectrum(wave)[1][0].argmax()]
    assert top == pytest.approx(2 * 6 / 48, rel=0.15)
    assert (radial_spectrum(np.full((1, 1, 16, 16), 0.3))[1] == -12.0).all()
    for images in (np.zeros((3, 8, 8)), np.zeros((1, 1, 7, 9)), np.full((1, 1, 9, 9), np.inf)):
        with pytest.raises(DataError, match="images"):
            radial_spectrum(images)
