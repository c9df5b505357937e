"""Fourier amplitudes against loops over frequencies in float64."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from daptkit.errors import UsageError
from daptkit.testing import make_task
from daptkit_appearance.fda import (
    FDA,
    frequencies,
    low_spectrum,
    match_amplitudes,
    mean_amplitude,
    smallest_band,
)
from daptkit_appearance.plugin import FDAOptions


def images(n: int, seed: int, height: int = 8, width: int = 10) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, height, width, generator=generator, dtype=torch.float64)


def coefficient(image: list[list[float]], u: int, v: int) -> complex:
    """One coefficient of the Fourier transform, by its sum."""
    h, w = len(image), len(image[0])
    return sum(
        image[y][x] * cmath.exp(-2j * math.pi * (u * y / h + v * x / w))
        for y in range(h)
        for x in range(w)
    ) / (h * w)


@pytest.mark.parametrize("mode", ["ratio", "swap"])
@pytest.mark.parametrize("b", [0, 1, 2])
def test_matching_is_the_loop(mode: str, b: int) -> None:
    source, target = images(3, 1), 0.5 + 0.3 * images(2, 2)
    h, w = 8, 10
    band = [(u, v) for u in range(-b, b + 1) for v in range(-b, b + 1)]
    means = {
        name: {f: sum(abs(coefficient(x[0].tolist(), *f)) for x in site) / len(site) for f in band}
        for name, site in (("s", source), ("t", target))
    }
    found = match_amplitudes(
        target, mean_amplitude(source, b), mean_amplitude(target, b), mode=mode, strength=0.7
    )
    for n, image in enumerate(target):
        pixels = image[0].tolist()
        change = {}
        for f in band:
            c = coefficient(pixels, *f)
            new = abs(c) * means["s"][f] / means["t"][f] if mode == "ratio" else means["s"][f]
            new = min(max(new, abs(c) / 5), 5 * abs(c))
            change[f] = 0.7 * (new - abs(c)) * c / abs(c)
        for y in range(h):
            for x in range(w):
                added = sum(
                    d * cmath.exp(2j * math.pi * (u * y / h + v * x / w))
                    for (u, v), d in change.items()
                )
                assert abs(added.imag) < 1e-12
                assert float(found[n, 0, y, x]) == pytest.approx(
                    pixels[y][x] + added.real, abs=1e-12
                )


def test_phases_and_other_frequencies_are_kept() -> None:
    source, target = images(4, 3, 32, 32), images(4, 4, 32, 32) ** 3
    swapped = match_amplitudes(
        target, mean_amplitude(source, 3), mean_amplitude(target, 3), mode="swap"
    )
    before, after = (np.fft.fft2(x.numpy()) for x in (target, swapped))
    np.testing.assert_allclose(np.angle(after), np.angle(before), atol=1e-9)
    outside = np.ones((32, 32), bool)
    inside = np.r_[-3:4]
    outside[np.ix_(inside, inside)] = False
    np.testing.assert_allclose(after[..., outside], before[..., outside], atol=1e-9)
    amplitudes = np.abs(np.fft.fft2(source.numpy())).mean(0)[0][np.ix_(inside, inside)]
    gains = np.abs(after)[..., 0, :, :][..., inside[:, None], inside] / amplitudes
    assert np.median(np.abs(gains - 1)) < 1e-9  # a few are held back by the largest factor


def test_spectrum_holds_the_band() -> None:
    x = images(2, 5)
    full = np.fft.fft2(x.numpy()) / 80
    found = low_spectrum(x, 2).numpy()
    for row, u in enumerate(range(-2, 3)):
        np.testing.assert_allclose(found[:, :, row], full[:, :, u, :3], atol=1e-12)


def test_band_is_the_papers() -> None:
    assert [frequencies(224, 256, band) for band in (0.0, 0.004, 0.01, 0.05, 0.09)] == [
        0,
        0,
        2,
        11,
        20,
    ]
    with pytest.raises(UsageError, match=r"fda.band 0.25 reaches 128 cycles per image at 512x600"):
        frequencies(512, 600, 0.25)


def test_smallest_band_reaches_one_cycle() -> None:
    assert [smallest_band(edge, 2 * edge) for edge in (16, 28, 64, 100, 224)] == [
        0.063,
        0.036,
        0.016,
        0.01,
        0.0045,
    ]
    for edge in range(8, 4097):
        band = smallest_band(edge, edge)
        assert frequencies(edge, edge, band) == 1
        assert band < 1.1 / edge


@pytest.mark.parametrize(
    ("band", "noted"),
    [
        (0.01, "a band of 0.01 reaches no frequency but the mean brightness; --fda.band 0.036"),
        (0.0, "a band of 0 reaches no frequency but the mean brightness; --fda.band 0.036"),
        (0.036, None),
    ],
)
def test_a_band_of_the_mean_alone_is_told(band: float, noted: str | None) -> None:
    source, target = images(3, 9, 28, 30).float(), images(3, 10, 28, 30).float()
    fitted = FDA(FDAOptions(band=band), make_task())
    fitted.fit_images(source, target)
    # A run trains with a method made anew from the state of the fitted one.
    method = FDA(FDAOptions(band=band), make_task())
    method.load_state_dict(fitted.state_dict())
    notes: list[str] = []

    class Context:
        note = staticmethod(notes.append)

        @staticmethod
        def images(domain: str, limit: int) -> Tensor:
            return {"source": source, "target": target}[domain][:limit]

    method.on_fit_start(Context())  # type: ignore[arg-type]
    assert notes == (
        [] if noted is None else [f"fda: at this image size {noted} reaches 1 cycle per image."]
    )
    assert method.report()["cycles_per_image"] == (0 if noted else 1)


def test_no_amplitude_no_change() -> None:
    source, flat = images(3, 6, 32, 32).float(), torch.full((3, 1, 32, 32), 0.4)
    for mode in ("ratio", "swap"):
        method = FDA(FDAOptions(band=0.1, mode=mode), make_task())
        method.fit_images(source, flat)
        aligned = method.align_images(flat, "target")
        assert float(aligned.std()) < 1e-6  # the mean alone is matched
        assert float(aligned.mean()) == pytest.approx(float(source.mean()), abs=1e-3)
        report = method.report()
        assert report["frequencies_left_alone"] == 7 * 4 - 1 and report["cycles_per_image"] == 3


def test_uneven_light_is_evened_out() -> None:
    shade = 0.2 * torch.cos(torch.arange(32) * (2 * math.pi / 32)).view(1, 1, 1, -1)
    source = 0.5 + 0.1 * images(20, 7, 32, 32).float()
    target = 0.5 + 0.1 * images(20, 8, 32, 32).float() + shade
    method = FDA(FDAOptions(band=0.1), make_task())
    method.fit_images(source, target)
    aligned = method.align_images(target, "target")
    left = [float(x.mean((0, 1, 2)).std()) for x in (target, aligned)]
    assert left[1] < 0.25 * left[0]
