"""The distance of features that label shift leaves: its formula, and what it must catch."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest

from daptkit.shift import estimate_prior, feature_gap

P = np.array([0.5, 0.3, 0.2])
Q = np.array([0.1, 0.3, 0.6])
MEANS = np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [-1.5, -1.5, 0.0]])


def draw(n, prior, seed, offset=(0.0, 0.0, 0.0)):
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=prior)
    return MEANS[y] + rng.normal(size=(n, 3)) + np.array(offset), y


def test_gap_is_the_formula():
    x, y = draw(24, P, 0)
    y[:15] = np.repeat([0, 1, 2], 5)
    g = np.r_[np.arange(23), 22]  # the last two images are of one patient
    t, _ = draw(18, Q, 1, (0.5, 0.0, 0.0))
    h = np.r_[np.arange(17), 0]
    rows = [*map(tuple, x), *map(tuple, t)]
    who = [*(("s", v) for v in g), *(("t", v) for v in h)]
    d2 = [sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) for u, v in
          itertools.combinations(rows, 2)]  # fmt: skip
    width = float(np.median(d2))

    def kernel(u, v):
        d = sum((a - b) ** 2 for a, b in zip(u, v, strict=True))
        return sum(math.exp(-d / (2.0**e * width)) for e in (-2, -1, 0, 1, 2)) / 5

    def inner(first, second):
        pairs = [(i, j) for i in first for j in second if who[i] != who[j]]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    sets = [[i for i in range(24) if y[i] == k] for k in range(3)] + [list(range(24, 42))]
    c = [*Q, -1.0]
    gap = sum(c[a] * c[b] * inner(sets[a], sets[b]) for a in range(4) for b in range(4))
    between = [
        inner(sets[a], sets[a]) + inner(sets[b], sets[b]) - 2 * inner(sets[a], sets[b])
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    found = feature_gap(x, y, t, Q, source_groups=g, target_groups=h)
    assert found == pytest.approx(gap / (sum(between) / 3), abs=1e-12)


def test_label_shift_leaves_no_gap_and_a_wrong_prior_or_moved_features_do():
    x, y = draw(600, P, 0)
    t, _ = draw(600, Q, 1)
    moved, _ = draw(600, Q, 1, (0.0, 0.0, 3.0))  # across the classes
    assert abs(feature_gap(x, y, t, Q)) < 0.02
    assert feature_gap(x, y, t, P) > 0.1
    assert feature_gap(x, y, moved, Q) > 0.5


def test_patients_are_never_paired_with_themselves():
    """20 near-identical images of each patient: pairs within one would look like a gap."""
    rng = np.random.default_rng(0)

    def site(seed):
        x, y = draw(30, P, seed)
        return np.repeat(x, 20, 0) + 0.01 * rng.normal(size=(600, 3)), np.repeat(y, 20)

    groups = np.repeat(np.arange(30), 20)
    by_image, by_patient = [], []
    for seed in range(12):
        (x, y), (t, labels) = site(seed), site(100 + seed)
        q = np.bincount(labels, minlength=3) / 600
        by_image.append(feature_gap(x, y, t, q))
        by_patient.append(feature_gap(x, y, t, q, source_groups=groups, target_groups=groups))
    assert abs(np.mean(by_patient)) < 0.5 * np.mean(by_image)


def test_what_cannot_be_measured_is_nan_without_a_warning():
    x, y = draw(60, P, 0)
    one_class = np.zeros(60, dtype=int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for found in (
            feature_gap(x, y, x[:14], Q),
            feature_gap(x, one_class, x, Q),
            feature_gap(np.ones((60, 3)), y, np.ones((60, 3)), Q),
            feature_gap(x, y, x, Q, target_groups=one_class),
        ):
            assert math.isnan(found)


def collapsed(offset):
    """Logits and features of a target whose images all look like class 2, at usual confidence."""
    x, y = draw(600, P, 0)
    t, _ = draw(600, P, 1)
    t = np.where(np.arange(3) == 2, t + offset, MEANS[2] + (t - t.mean(0)) / t.std(0))
    z, zt = (np.log(P) - 0.5 * ((v[:, None] - MEANS) ** 2).sum(-1) for v in (x, t))
    return x, y, z, t, zt


def test_a_target_that_looks_like_one_class_is_not_trusted_when_its_features_differ():
    x, y, z, t, zt = collapsed(4.0)
    blind = estimate_prior(z, y, zt, bootstraps=20)
    assert blind.trusted  # outputs alone cannot tell it from a target of one class
    assert blind.estimate[2] > 0.9
    assert math.isnan(blind.feature_gap)
    assert blind.to_json()["feature_gap"] is None
    found = estimate_prior(z, y, zt, source_features=x, target_features=t, bootstraps=20)
    assert found.feature_gap > 0.25
    assert not found.trusted
    assert "features of one class differ" in found.reasons[0]
    x, y, z, t, zt = collapsed(0.0)
    assert estimate_prior(z, y, zt, source_features=x, target_features=t, bootstraps=20).trusted
