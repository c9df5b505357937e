"""Image statistics on images whose answer is known, effect sizes against their formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from daptkit.errors import DataError
from daptkit.shift import compare_appearance, image_statistics
from daptkit.shift.effects import cliffs_delta, cohens_d, cramers_v, holm, rank_p, table_p


def texture(n=4, size=48, seed=0, blur=1.0):
    rng = np.random.default_rng(seed)
    images = gaussian_filter(rng.normal(size=(n, 1, size, size)), (0, 0, blur, blur))
    return 0.5 + 0.1 * images / images.std()


def test_levels_and_contrast_are_loops():
    image = np.random.default_rng(0).uniform(size=(1, 2, 9, 10))
    found = image_statistics(image)
    grey = [image[0, :, i, j].sum() / 2 for i in range(9) for j in range(10)]
    mean = sum(grey) / 90
    assert found["intensity_mean"][0] == pytest.approx(mean)
    assert found["contrast"][0] == pytest.approx(math.sqrt(sum((g - mean) ** 2 for g in grey) / 90))
    assert found["intensity_q50"][0] == pytest.approx(np.median(grey))
    assert found["channel_2_mean"][0] == pytest.approx(image[0, 1].mean())


def test_noise_is_that_of_white_noise_and_leaves_edges_out():
    rng = np.random.default_rng(0)
    step = np.zeros((1, 1, 64, 64))
    step[..., 32:] = 0.8
    clean, noisy = (image_statistics(step + s * rng.normal(size=step.shape)) for s in (0.0, 0.05))
    assert clean["noise"][0] == pytest.approx(0.0, abs=1e-12)
    assert noisy["noise"][0] == pytest.approx(0.05, rel=0.1)


def test_sharpness_is_the_formula_and_falls_with_blur():
    image = texture(1, 12)
    found, g = image_statistics(image), image[0, 0]
    inner = range(1, 11)
    laplacian = [g[i - 1, j] + g[i + 1, j] + g[i, j - 1] + g[i, j + 1] - 4 * g[i, j]
                 for i in inner for j in inner]  # fmt: skip
    wanted = math.log10(np.var(laplacian) / g.var())
    assert found["sharpness_laplacian"][0] == pytest.approx(wanted)
    slope = [(g[i + 1, j] - g[i, j]) ** 2 + (g[i, j + 1] - g[i, j]) ** 2
             for i in range(11) for j in range(11)]  # fmt: skip
    wanted = math.log10(sum(slope) / 121 / g.var())
    assert found["sharpness_gradient"][0] == pytest.approx(wanted)
    # Contrast and brightness are no sharpness.
    paler = image_statistics(0.3 + 0.5 * image)
    for name in ("sharpness_laplacian", "sharpness_gradient", "resolution"):
        assert paler[name][0] == pytest.approx(found[name][0])
        sharp, soft = (image_statistics(texture(blur=b))[name].mean() for b in (0.8, 2.0))
        assert soft < sharp


def test_resolution_is_the_frequency_of_a_wave():
    x = np.arange(64)
    for frequency in (0.125, 0.375):
        wave = 0.5 + 0.4 * np.cos(2 * np.pi * frequency * x)
        for image in (np.tile(wave, (64, 1)), np.tile(wave, (64, 1)).T):
            found = image_statistics(image[None, None])["resolution"][0]
            assert found == pytest.approx(2 * frequency, abs=2 / 32)
    assert image_statistics(texture(size=49))["resolution"].shape == (4,)


def test_colours():
    image = np.zeros((2, 3, 8, 8))
    image[0, 0], image[1] = 0.8, 0.5
    image[0, 1] = 0.2
    found = image_statistics(image)
    np.testing.assert_allclose(found["red_mean"], [0.8, 0.5])
    np.testing.assert_allclose(found["saturation"], [1.0, 0.0])
    assert "red_mean" not in image_statistics(texture())


def test_constant_images_have_no_sharpness_and_chunks_do_not_matter(monkeypatch):
    images = np.concatenate([np.full((1, 1, 48, 48), 0.3), texture(6)])
    found = image_statistics(images)
    assert math.isnan(found["sharpness_laplacian"][0]) and math.isnan(found["resolution"][0])
    assert found["noise"][0] == pytest.approx(0.0, abs=1e-12)
    monkeypatch.setattr("daptkit.shift.imagestats._CHUNK", 2)
    for name, values in image_statistics(images).items():
        np.testing.assert_allclose(values, found[name], rtol=1e-12)


IMPOSSIBLE = [
    np.zeros((3, 8, 8)),
    np.zeros((1, 1, 7, 9)),
    np.zeros((0, 1, 9, 9)),
    np.full((1, 1, 9, 9), np.nan),
]


@pytest.mark.parametrize("images", IMPOSSIBLE, ids=["shape", "small", "none", "nan"])
def test_impossible_images_are_refused(images):
    with pytest.raises(DataError):
        image_statistics(images)


def test_effect_sizes_are_the_formulas():
    rng = np.random.default_rng(0)
    a, b = np.round(rng.normal(size=14), 1), np.round(rng.normal(size=11) + 0.6, 1)
    delta, low, high = cliffs_delta(a, b)
    pairs = [np.sign(y - x) for x in a for y in b]
    assert delta == pytest.approx(sum(pairs) / len(pairs))
    assert low < delta < high
    d, d_low, d_high = cohens_d(a, b)
    sa = sum((v - a.mean()) ** 2 for v in a)
    sb = sum((v - b.mean()) ** 2 for v in b)
    assert d == pytest.approx((b.mean() - a.mean()) / math.sqrt((sa + sb) / 23))
    half = 1.959964 * math.sqrt(25 / 154 + d * d / 50)
    assert (d_low, d_high) == pytest.approx((d - half, d + half))


def test_delta_of_separate_samples_keeps_an_interval():
    a, b = np.arange(12.0), np.arange(12.0) + 20
    assert cliffs_delta(a, b)[0] == 1.0 and 0.5 < cliffs_delta(a, b)[1] < 1.0
    assert cliffs_delta(b, a)[0] == -1.0 and -1.0 < cliffs_delta(b, a)[2] < -0.5
    assert 0 < rank_p(a, b) < 1e-4
    assert all(math.isnan(v) for v in cohens_d(np.ones(5), np.ones(6)))
    assert math.isnan(rank_p(np.ones(5), np.ones(6)))


def test_interval_of_delta_covers():
    """Newcombe's interval of normal samples a standard deviation apart: 2 Phi(1/sqrt 2) - 1."""
    truth, hits = 0.5205, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        _, low, high = cliffs_delta(rng.normal(size=25), rng.normal(size=25) + 1.0)
        hits += low <= truth <= high
    assert hits / 200 >= 0.91


def test_cramers_v_and_its_permutation_test():
    assert cramers_v(np.array([[50, 0], [0, 50]])) == pytest.approx(1.0)
    assert cramers_v(np.array([[25, 25], [25, 25]])) == 0.0
    table = np.array([[12, 3, 5], [4, 9, 7]])
    n, c, expected = 40, 3, np.outer([20, 20], [16, 12, 12]) / 40
    phi2 = sum((table[i, j] - expected[i, j]) ** 2 / expected[i, j]
               for i in range(2) for j in range(3)) / n  # fmt: skip
    f = phi2 - (c - 1) / (n - 1)
    wanted = math.sqrt(f / min(1 - 1 / 39, 2 - 4 / 39))
    assert cramers_v(table) == pytest.approx(wanted)
    # Fisher's exact test of a 2 x 2 table, by all tables of its margins.
    small = np.array([[7, 2], [3, 8]])

    def weight(k):
        return math.comb(10, k) * math.comb(10, 9 - k)

    likely = [k for k in range(10) if abs(k - 4.5) >= 2.5]  # chi^2 grows with |k - 4.5|
    exact = sum(map(weight, likely)) / sum(map(weight, range(10)))
    assert table_p(small, 0) == pytest.approx(exact, abs=0.01)
    assert math.isnan(table_p(np.array([[5, 0], [6, 0]]), 0))


def test_holm_is_the_stepdown():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    adjusted = holm([0.2, math.nan, 0.001])
    assert adjusted[0] == pytest.approx(0.2) and math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.002)


def test_another_scanner_is_visible_as_what_differs():
    rng = np.random.default_rng(0)
    anatomy = texture(60, 32, blur=1.5)
    source, target = anatomy[:30], anatomy[30:]
    target = target + 0.04 * rng.normal(size=target.shape)
    groups = np.repeat(np.arange(15), 2)
    found = compare_appearance(
        {**image_statistics(source), "manufacturer": ["A"] * 24 + ["B"] * 6, "kvp": np.ones(30)},
        {**image_statistics(target), "manufacturer": ["B"] * 28 + [None, ""], "extra": ["x"] * 30},
        source_groups=groups, target_groups=groups,
    )  # fmt: skip
    by_name = {d.name: d for d in found}
    assert "extra" not in by_name and "kvp" not in by_name
    noise, mean = by_name["noise"], by_name["intensity_mean"]
    assert noise.effect == 1.0 and noise.p_adjusted < 0.001 and noise.source_patients == 15
    assert mean.p_adjusted > 0.05
    assert noise.p_adjusted >= noise.p
    scanner = by_name["manufacturer"]
    assert scanner.shares == {
        "(missing)": (0.0, 1 / 15), "A": (12 / 15, 0.0), "B": (3 / 15, 14 / 15)
    }  # fmt: skip
    assert scanner.effect > 0.7 and scanner.p_adjusted < 0.01
    effects = [abs(d.effect) for d in found]
    assert effects == sorted(effects, reverse=True)
    plain = scanner.to_json()
    assert plain["low"] is None and plain["shares"]["A"] == [0.8, 0.0]


def test_patients_are_counted_once():
    """Ten patients of 30 images each: image by image any statistic differs."""
    small = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        values = [np.repeat(rng.normal(size=10), 30) for _ in range(2)]
        groups = np.repeat(np.arange(10), 30)
        found = compare_appearance(
            {"v": values[0]}, {"v": values[1]}, source_groups=groups, target_groups=groups
        )
        small += found[0].p <= 0.05
    assert small <= 5


def test_values_that_cannot_be_compared():
    nan = np.array([np.nan] * 4)
    (only,) = compare_appearance({"v": nan}, {"v": np.arange(4.0)})
    assert only.source is None and math.isnan(only.p) and only.source_patients == 0
    assert only.to_json()["p_adjusted"] is None
    with pytest.raises(DataError, match="text at one site"):
        compare_appearance({"v": ["a"]}, {"v": [1.0]})
    with pytest.raises(DataError, match="'v' has 2 values for 3 images"):
        compare_appearance({"v": [1.0, 2.0]}, {"v": [1.0]}, source_groups=[0, 1, 2])
    with pytest.raises(DataError, match=r"must be \(N,\)"):
        compare_appearance({"v": [[1.0]]}, {"v": [1.0]})


def test_permutations_of_a_table_match_enumeration_of_labels():
    """The multivariate hypergeometric draw is the permutation of patients over sites."""
    labels, inside = [0, 0, 1, 1, 2, 2, 2], 3
    values = []
    for first in itertools.combinations(range(7), inside):
        t = np.zeros((2, 3))
        for i, label in enumerate(labels):
            t[0 if i in first else 1, label] += 1
        e = t.sum(1, keepdims=True) * t.sum(0) / 7
        values.append(((t - e) ** 2 / e).sum())
    observed = np.array([[2, 1, 0], [0, 1, 3]])
    e = observed.sum(1, keepdims=True) * observed.sum(0) / 7
    chi2 = ((observed - e) ** 2 / e).sum()
    exact = np.mean([v >= chi2 - 1e-9 for v in values])
    assert table_p(observed, 0) == pytest.approx(exact, abs=0.02)
