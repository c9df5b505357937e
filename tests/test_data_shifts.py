"""The parts of a scanner shift, each against its formula in plain loops or a known value."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from daptkit.data.shifts import apply_shift, bias_field, blurred, coarser
from daptkit.data.stains import STAINS, StainShift, draw_stain, restain
from daptkit.errors import UsageError
from daptkit.scanner import PRESETS, ScannerShift, build_shift


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(*shape: int) -> np.ndarray:
    return rng(1).uniform(0.1, 0.9, shape)


def seen(image: np.ndarray, **shift: float) -> np.ndarray:
    return apply_shift(image, ScannerShift(**shift), rng())


@pytest.mark.parametrize("shape", [(12, 17), (12, 17, 3), (1, 1)])
def test_defaults_change_nothing(shape: tuple[int, ...]) -> None:
    image = picture(*shape)
    assert np.array_equal(seen(image), image)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3)])
def test_contrast_gamma_and_offset_are_the_stated_formula(shape: tuple[int, ...]) -> None:
    image = picture(*shape)
    found = seen(image, contrast=1.6, gamma=1.7, offset=-0.1)
    for place in np.ndindex(shape):
        wanted = -0.1 + 1.6 * float(image[place]) ** 1.7
        assert found[place] == pytest.approx(min(max(wanted, 0.0), 1.0))


def test_a_constant_image_stays_constant() -> None:
    flat = np.full((20, 30), 0.5)
    found = seen(flat, contrast=0.8, gamma=2.0, offset=0.1, blur=0.05, resolution=3.0)
    assert found == pytest.approx(np.full((20, 30), 0.1 + 0.8 * 0.25), abs=1e-6)


def test_blur_keeps_the_mean_and_has_the_stated_width() -> None:
    image = picture(40, 60)
    assert blurred(image, 0.05).mean() == pytest.approx(image.mean(), abs=1e-3)
    point = np.zeros((101, 151))
    point[50, 75] = 1.0
    spread = blurred(point, 0.03)
    for axis, middle in ((0, 75), (1, 50)):  # sums over rows leave columns
        offsets = np.arange(spread.shape[1 - axis]) - middle
        variance = (spread.sum(axis=axis) * offsets**2).sum()
        assert variance == pytest.approx((0.03 * 101) ** 2, rel=0.03)


def test_blur_does_not_mix_channels() -> None:
    image = np.zeros((20, 20, 3))
    image[..., 1] = picture(20, 20)
    found = blurred(image, 0.05)
    assert not found[..., [0, 2]].any()
    assert np.allclose(found[..., 1], blurred(image[..., 1], 0.05))


def test_lower_resolution_is_the_mean_over_larger_pixels_drawn_back_bilinearly() -> None:
    image = picture(8, 12)
    detector = [
        [image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() for j in range(3)] for i in (0, 1)
    ]

    def between(place: int, n: int) -> tuple[int, int, float]:
        """Neighbours on the detector of a pixel of the image, and the weight of the second."""
        centre = min(max((place + 0.5) / 4 - 0.5, 0.0), n - 1.0)
        first = min(int(centre), n - 2)
        return first, first + 1, centre - first

    found = coarser(image, 4.0)
    for row, column in np.ndindex(8, 12):
        (a, b, v), (c, d, u) = between(row, 2), between(column, 3)
        left = (1 - v) * detector[a][c] + v * detector[b][c]
        right = (1 - v) * detector[a][d] + v * detector[b][d]
        assert found[row, column] == pytest.approx((1 - u) * left + u * right, abs=1e-6)


def test_lower_resolution_removes_detail_and_keeps_channels_apart() -> None:
    stripes = np.tile([0.0, 1.0], (16, 8))
    assert np.ptp(coarser(stripes, 2.0)) < 1e-6
    colour = np.stack([stripes, np.full((16, 16), 0.3), np.zeros((16, 16))], axis=-1)
    assert coarser(colour, 2.0) == pytest.approx(np.broadcast_to([0.5, 0.3, 0.0], (16, 16, 3)))
    assert coarser(picture(5, 1), 16.0).shape == (5, 1)


def test_resolution_1_is_the_identity() -> None:
    image = picture(9, 7)
    assert coarser(image, 1.0) is image


def test_noise_has_the_stated_deviation_and_each_channel_its_own() -> None:
    flat = np.full((150, 150, 3), 0.5)
    found = seen(flat, noise=0.04)
    assert found.std() == pytest.approx(0.04, rel=0.02)
    assert abs(np.corrcoef(found[..., 0].ravel(), found[..., 1].ravel())[0, 1]) < 0.03


def test_a_bias_field_has_mean_1_and_the_stated_strength_and_is_smooth() -> None:
    for seed in range(5):
        field = bias_field((50, 70), 0.4, rng(seed))
        assert field.shape == (50, 70)
        assert field.mean() == pytest.approx(1.0)
        # Before the mean is taken out the largest logarithm is the strength.
        logarithm = np.log(field)
        assert 0.4 < np.ptp(logarithm) <= 0.8 + 1e-9
        assert np.abs(np.diff(field, axis=0)).max() < 0.15
        # A polynomial of degree 3 has no fourth difference.
        assert np.abs(np.diff(logarithm, n=4, axis=0)).max() < 1e-9
        assert np.abs(np.diff(logarithm, n=4, axis=1)).max() < 1e-9
        assert np.abs(np.diff(logarithm, n=3, axis=0)).max() > 1e-9


def test_a_bias_field_multiplies_every_channel_before_gamma() -> None:
    image = picture(10, 12, 3)
    found = seen(image, bias_field=0.2, gamma=2.0)
    field = bias_field((10, 12), 0.2, rng())
    for channel in range(3):
        wanted = ((field * image[..., channel]) ** 2).clip(0.0, 1.0)
        assert found[..., channel] == pytest.approx(wanted)


def test_no_strength_is_no_field() -> None:
    assert bias_field((6, 6), 0.0, rng()) == pytest.approx(np.ones((6, 6)))


def test_restaining_is_the_stated_formula() -> None:
    image = picture(4, 5, 3)
    stain = StainShift(mixing=rng(2).uniform(-0.2, 1.0, (3, 3)), tint=np.array([0.0, 0.1, 0.2]))
    found = restain(image, stain)
    for row, column, channel in np.ndindex(4, 5, 3):
        density = stain.tint[channel]
        for other in range(3):
            density -= math.log(image[row, column, other]) * stain.mixing[other, channel]
        assert found[row, column, channel] == pytest.approx(min(math.exp(-density), 1.0))


def test_a_stain_of_strength_0_is_the_identity() -> None:
    image = picture(6, 6, 3)
    assert restain(image, draw_stain(0.0, rng())) == pytest.approx(image)


def test_a_drawn_stain_replaces_each_stain_by_more_or_less_of_a_similar_one() -> None:
    before = STAINS / np.linalg.norm(STAINS, axis=1, keepdims=True)
    for seed in range(20):
        shift = draw_stain(0.5, rng(seed))
        # Density of one unit of each stain, before and after.
        after = before @ shift.mixing
        amounts = np.linalg.norm(after, axis=1)
        assert (after >= -1e-12).all()
        assert (np.abs(np.log(amounts)) >= 0.6 * 0.5 * 0.5 - 1e-9).all()
        assert (np.abs(np.log(amounts)) <= 0.6 * 0.5 + 1e-9).all()
        cosines = (after * before).sum(axis=1) / amounts
        assert (cosines >= math.cos(0.4 * 0.5) - 1e-9).all()
        assert cosines.min() < 1 - 1e-4
        assert shift.tint.min() == 0.0 < shift.tint.max() <= 0.125
        assert shift.tint[1] <= shift.tint.max() / 2


def test_a_stain_leaves_white_under_a_white_lamp() -> None:
    stain = dataclasses.replace(draw_stain(1.0, rng()), tint=np.zeros(3))
    assert restain(np.ones((2, 2, 3)), stain) == pytest.approx(np.ones((2, 2, 3)))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 4)])
def test_a_stain_needs_three_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="stains need"):
        restain(picture(*shape), draw_stain(0.5, rng()))


def test_the_parts_come_in_the_stated_order() -> None:
    image, stain = picture(24, 24, 3), draw_stain(0.5, rng(7))
    shift = ScannerShift(
        contrast=0.8, gamma=1.4, offset=0.05, bias_field=0.2, blur=0.02, resolution=2.0, noise=0.01
    )
    own = rng(3)
    wanted = coarser(blurred(restain(image, stain), 0.02), 2.0)
    wanted = bias_field((24, 24), 0.2, own)[..., None] * wanted
    wanted = 0.05 + 0.8 * wanted**1.4 + 0.01 * own.standard_normal((24, 24, 3))
    assert np.array_equal(apply_shift(image, shift, rng(3), stain=stain), wanted.clip(0.0, 1.0))


def test_a_shift_is_the_same_for_the_same_generator_only() -> None:
    image, shift = picture(16, 16), ScannerShift(bias_field=0.3, noise=0.02)
    assert np.array_equal(apply_shift(image, shift, rng(5)), apply_shift(image, shift, rng(5)))
    assert not np.array_equal(apply_shift(image, shift, rng(5)), apply_shift(image, shift, rng(6)))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_change_images_and_are_within_bounds(name: str) -> None:
    shift = build_shift(name, {})
    assert shift == PRESETS[name] != ScannerShift()
    assert 0.01 < np.abs(apply_shift(picture(32, 32), shift, rng()) - picture(32, 32)).mean() < 0.4


def test_values_win_over_the_preset() -> None:
    shift = build_shift("low-dose", {"noise": 0.0, "gamma": "1.5"})
    assert shift == dataclasses.replace(PRESETS["low-dose"], noise=0.0, gamma=1.5)


@pytest.mark.parametrize(
    ("preset", "values", "message"),
    [
        ("low-does", {}, "--preset 'low-does' is not one of .*Did you mean 'low-dose'"),
        (None, {"contrsat": 1.0}, "unknown option 'contrsat'.*Did you mean 'contrast'"),
        (None, {"noise": 0.7}, r"'noise' must lie in \[0.0, 0.5\]"),
        (None, {"resolution": 0.5}, "'resolution' must lie in"),
        (None, {"gamma": math.nan}, "'gamma' must be finite"),
    ],
)
def test_shifts_that_cannot_be(preset: str | None, values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_shift(preset, values)
