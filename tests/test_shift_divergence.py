"""Divergences of equal, different, grouped and degenerate samples."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from daptkit.errors import DataError
from daptkit.shift import divergences, knn_domain_accuracy, mmd2, proxy_a_distance


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
