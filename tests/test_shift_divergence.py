"""Divergences of equal, different, grouped and degenerate samples."""

from __future__ import annotations

import math
import tracemalloc
import warnings

import numpy as np
import pytest

from daptkit.errors import DataError
from daptkit.shift import (
    divergence,
    divergences,
    knn_domain_accuracy,
    mmd2,
    pairs,
    proxy_a_distance,
)


def pair(n=300, m=250, d=8, move=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) + move


def test_equal_laws_give_zero_and_half():
    values = [divergences(*pair(seed=s)) for s in range(5)]
    assert np.mean([v["proxy_a_distance"] for v in values]) < 0.2
    assert abs(np.mean([v["mmd2"] for v in values])) < 1e-3
    assert np.mean([v["knn_domain_accuracy"] for v in values]) == pytest.approx(0.5, abs=0.04)


def test_separate_domains_are_told_apart():
    found = divergences(*pair(move=5.0))
    assert found["proxy_a_distance"] == pytest.approx(2.0)
    assert found["knn_domain_accuracy"] == pytest.approx(1.0)
    assert found["mmd2"] > 0.5


def test_mmd2_is_the_formula():
    x, y = pair(17, 16, 3, move=0.5)
    w = np.random.default_rng(1).uniform(0.1, 2.0, 17)
    pooled = np.vstack([x, y])
    distances = [((pooled[i] - pooled[j]) ** 2).sum() for i in range(33) for j in range(i + 1, 33)]
    width = float(np.median(distances))

    def k(a, b):
        d2 = ((a - b) ** 2).sum()
        return sum(math.exp(-d2 / (2.0**e * width)) for e in (-2, -1, 0, 1, 2)) / 5

    xx = sum(w[i] * w[j] * k(x[i], x[j]) for i in range(17) for j in range(17) if i != j)
    yy = sum(k(y[i], y[j]) for i in range(16) for j in range(16) if i != j)
    xy = sum(w[i] * k(x[i], y[j]) for i in range(17) for j in range(16))
    wanted = xx / (w.sum() ** 2 - (w**2).sum()) + yy / (16 * 15) - 2 * xy / (w.sum() * 16)
    assert mmd2(x, y, source_weights=w) == pytest.approx(wanted, abs=1e-12)


def test_class_weights_remove_label_shift_from_mmd2():
    rng = np.random.default_rng(0)
    p, q = np.array([0.8, 0.2]), np.array([0.2, 0.8])
    y_s, y_t = rng.choice(2, 800, p=p), rng.choice(2, 800, p=q)
    x = rng.normal(size=(800, 4)) + 3.0 * y_s[:, None]
    t = rng.normal(size=(800, 4)) + 3.0 * y_t[:, None]
    assert mmd2(x, t) > 0.1
    assert abs(mmd2(x, t, source_weights=(q / p)[y_s])) < 0.01


def test_patients_are_never_split():
    """40 patients of 10 near-identical images and no shift: images alone would cry shift."""
    rng = np.random.default_rng(0)

    def images():
        return np.repeat(rng.normal(size=(40, 16)), 10, axis=0) + 0.05 * rng.normal(size=(400, 16))

    groups = np.repeat(np.arange(40), 10)
    x, y = images(), images()
    known = {"source_groups": groups, "target_groups": groups}
    assert knn_domain_accuracy(x, y) > 0.95
    assert knn_domain_accuracy(x, y, **known) < 0.65
    assert proxy_a_distance(x, y) > proxy_a_distance(x, y, **known)


def test_unequal_sizes_are_balanced():
    x, y = pair(2500, 40)
    found = divergences(x, y)
    assert found["knn_domain_accuracy"] < 0.65
    assert found["proxy_a_distance"] < 0.8


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((14, 3)), np.ones((100, 3))),
        (np.ones((100, 3)), np.ones((100, 3))),
        (np.full((50, 2), 1e8), np.full((50, 2), 1e8)),
    ],
)
def test_what_cannot_be_measured_is_nan_without_a_warning(x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = divergences(x, y)
    assert all(math.isnan(v) for v in found.values())


def test_median_distance_zero_and_near_constant_channels():
    rng = np.random.default_rng(0)
    x = np.zeros((60, 3))
    x[:3] = rng.normal(size=(3, 3))
    found = mmd2(x, np.zeros((60, 3)))
    assert math.isfinite(found)
    a, b = pair(100, 100, 3)
    noise = 1e-12 * rng.normal(size=(100, 1))
    with_constant = proxy_a_distance(np.hstack([a, 1 + noise]), np.hstack([b, 1 + 0 * noise]))
    assert with_constant == pytest.approx(proxy_a_distance(a, b), abs=0.05)


def test_one_patient_of_a_domain_is_nan():
    x, y = pair(50, 50)
    one = np.zeros(50, dtype=int)
    assert math.isnan(proxy_a_distance(x, y, source_groups=one))
    assert math.isnan(knn_domain_accuracy(x, y, source_groups=one))


def test_bad_input_is_a_data_error():
    with pytest.raises(DataError, match="columns"):
        divergences(np.zeros((20, 3)), np.zeros((20, 4)))
    with pytest.raises(DataError, match="NaN"):
        mmd2(np.full((20, 3), np.nan), np.zeros((20, 3)))


MEASURES = [mmd2, proxy_a_distance, knn_domain_accuracy]


@pytest.fixture
def large_sample(monkeypatch):
    """Any sample counts as a large one, and takes several blocks."""
    monkeypatch.setattr(pairs, "_TILE", 64)
    monkeypatch.setattr(pairs, "_PANEL", 5_000)

    def switch(large):
        monkeypatch.setattr(pairs, "EXACT_ROWS", 100 if large else 10_000)

    return switch


@pytest.mark.parametrize("mean", [0.0, 1e4])
@pytest.mark.parametrize("measure", [mmd2, knn_domain_accuracy])
def test_blocks_in_float32_change_nothing_but_rounding(measure, mean, large_sample, monkeypatch):
    monkeypatch.setattr(divergence, "bandwidth", lambda x, seed: 20.0)
    x, y = pair(300, 250, move=0.3)
    options = {"source_weights": np.linspace(0.1, 2.0, 300)} if measure is mmd2 else {}
    found = {}
    for large in (False, True):
        large_sample(large)
        found[large] = measure(x + mean, y + mean, **options)
    assert found[True] == pytest.approx(found[False], abs=1e-8)


def test_blocks_keep_patients_apart(large_sample):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 10)
    x, y = (np.repeat(rng.normal(size=(20, 16)), 10, axis=0) for _ in range(2))
    x, y = (v + 0.05 * rng.normal(size=v.shape) for v in (x, y))
    large_sample(True)
    assert knn_domain_accuracy(x, y) > 0.95
    assert knn_domain_accuracy(x, y, source_groups=groups, target_groups=groups) < 0.7
    one = np.zeros(200, dtype=int)
    one[-3:] = 1  # patient 0 of a domain reaches 203 images of others
    assert math.isnan(knn_domain_accuracy(x, y, source_groups=one, target_groups=one, k=301))


def test_bandwidth_of_a_large_sample_is_near_the_median_of_all(large_sample):
    x = np.vstack(pair(300, 250, move=0.3))
    found = {}
    for large in (False, True):
        large_sample(large)
        found[large] = pairs.bandwidth(x, seed=0)
    assert found[True] != found[False]
    assert found[True] == pytest.approx(found[False], rel=0.1)
    mostly_equal = np.zeros((400, 2))
    mostly_equal[0] = 3.0  # a draw of 100 rows may miss it
    assert pairs.bandwidth(mostly_equal, seed=0) > 0


@pytest.mark.parametrize("measure", MEASURES)
def test_limit_is_the_number_of_images_of_a_domain(measure):
    x, y = pair(1200, 1100, 3, move=0.4)
    every = measure(x, y, limit=None)
    assert measure(x, y, limit=5_000) == every
    assert measure(x, y, limit=100) != every
    assert measure(x, y, limit=100) == measure(x, y, limit=100, seed=0)
    assert measure(x, y, limit=100) != measure(x, y, limit=100, seed=1)
    assert math.isnan(measure(x, y, limit=14))


def test_defaults_draw_images():
    x, y = pair(2100, 2100, 2, move=0.4)
    for measure, limit in ((mmd2, 1000), (knn_domain_accuracy, 1000), (proxy_a_distance, 2000)):
        assert measure(x, y) == measure(x, y, limit=limit) != measure(x, y, limit=None)


def test_memory_does_not_grow_with_pairs(monkeypatch):
    """All 16 million pairs would take 64 MB in float32, their neighbours' indices 128 MB."""
    monkeypatch.setattr(pairs, "_PANEL", 100_000)
    x, y = pair(2000, 2000, 4)
    for measure in (mmd2, knn_domain_accuracy):
        measure(x, y, limit=300)
        tracemalloc.start()
        measure(x, y, limit=None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40e6


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("splits", [2, 5])
def test_folds_never_split_a_patient_and_spread_both_domains(splits, seed):
    rng = np.random.default_rng(seed)
    domain = np.repeat([0, 1], 200)
    groups = np.concatenate([rng.integers(0, 12, 200), 100 + rng.geometric(0.2, 200).clip(max=9)])
    sample = divergence._Pair(np.zeros((400, 1)), domain, groups)
    fold = sample.folds(splits, seed)
    for patient in np.unique(groups):
        assert len(np.unique(fold[groups == patient])) == 1
    for d in (0, 1):
        largest = np.unique(groups[domain == d], return_counts=True)[1].max()
        images = np.bincount(fold[domain == d], minlength=splits)
        assert images.min() > 0
        assert images.max() - images.min() <= largest


def test_folds_of_single_images_are_equal():
    domain = np.repeat([0, 1], 50)
    sample = divergence._Pair(np.zeros((100, 1)), domain, np.arange(100))
    fold = sample.folds(5, seed=0)
    assert not np.array_equal(fold, sample.folds(5, seed=1))
    for d in (0, 1):
        assert np.bincount(fold[domain == d]).tolist() == [10] * 5
