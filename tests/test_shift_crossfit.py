"""Cross-fitting: honest, by patient, and complete when classes are missing from folds."""

from __future__ import annotations

import numpy as np
import pytest

from daptkit.errors import DataError
from daptkit.shift import cross_fitted_logits


def sample(n=120, d=20, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    means = 1.5 * np.random.default_rng(99).normal(size=(3, d))
    return means[y] + 2.0 * rng.normal(size=(n, d)), y


def test_out_of_fold_accuracy_is_that_of_new_images():
    x, y = sample()
    oof, predict = cross_fitted_logits(x, y, None, seed=0)
    new, labels = sample(600, seed=1)
    assert (oof.argmax(1) == y).mean() > 0.8
    held_out = (oof.argmax(1) == y).mean()
    assert held_out == pytest.approx((predict(new).argmax(1) == labels).mean(), abs=0.12)
    assert np.exp(oof).sum(1) == pytest.approx(np.ones(120))
    assert np.exp(predict(new)).sum(1) == pytest.approx(np.ones(600))


def test_random_labels_are_not_learnt():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 40)), rng.integers(0, 2, 150)
    oof, predict = cross_fitted_logits(x, y)
    assert (oof.argmax(1) == y).mean() < 0.65
    in_sample = (predict(x).argmax(1) == y).mean()
    assert in_sample > (oof.argmax(1) == y).mean() + 0.1  # what a fold that leaks would show


def test_patients_are_never_split():
    rng = np.random.default_rng(0)
    patients = np.repeat(rng.normal(size=(30, 40)), 8, axis=0)
    x = patients + 0.01 * rng.normal(size=patients.shape)
    y = np.repeat(rng.permutation(np.arange(30) % 2), 8)
    groups = np.repeat(np.arange(30), 8)
    leaking, _ = cross_fitted_logits(x, y)
    honest, _ = cross_fitted_logits(x, y, groups)
    assert (leaking.argmax(1) == y).mean() > 0.95
    assert (honest.argmax(1) == y).mean() < 0.8


def test_class_of_one_image_and_class_of_none():
    x, y = sample(60)
    y = np.where(y == 2, 0, y)
    y[0] = 2
    oof, predict = cross_fitted_logits(x, y, num_classes=4)
    assert oof.shape == (60, 4)
    assert np.isfinite(oof).all()
    assert np.isfinite(predict(x)).all()
    assert (predict(x)[:, 3] < np.log(1e-3)).all()


def test_constant_channels_and_seed():
    x, y = sample(60)
    x = np.hstack([x, np.ones((60, 2))])
    first, _ = cross_fitted_logits(x, y, seed=3)
    second, _ = cross_fitted_logits(x, y, seed=3)
    assert np.isfinite(first).all()
    assert (first == second).all()


def test_wide_features_are_projected():
    x, y = sample(90, d=300)
    oof, predict = cross_fitted_logits(x, y)
    assert (oof.argmax(1) == y).mean() > 0.8
    assert predict(x[:4]).shape == (4, 3)


def test_too_little_source_is_a_data_error():
    x, y = sample(30)
    with pytest.raises(DataError, match="2 patients"):
        cross_fitted_logits(x, y, np.zeros(30))
    with pytest.raises(DataError, match="2 classes"):
        cross_fitted_logits(x, np.zeros(30, dtype=int))
