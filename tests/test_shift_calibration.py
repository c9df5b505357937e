"""Calibration against its formula, and the samples that make it fail elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest

from daptkit.errors import DataError
from daptkit.shift import Calibration, fit_calibration


def sample(n: int, k: int = 3, seed: int = 0, scale: float = 3.0):
    """Logits that are ``scale`` times too large and biased, so that the truth is known."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, k)) * 1.5
    p = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    y = np.array([rng.choice(k, p=row) for row in p])
    return scale * (true - np.linspace(0.0, 1.0, k)), y


def loop_nll(c: Calibration, z, y, w) -> float:
    total = 0.0
    for row, label, weight in zip(z, y, w, strict=True):
        values = [v / c.temperature + b for v, b in zip(row, c.bias, strict=True)]
        top = max(values)
        total -= weight * (values[label] - top - math.log(sum(math.exp(v - top) for v in values)))
    return total / sum(w)


def test_log_posterior_and_nll_are_the_formula():
    z, y = sample(200)
    w = np.random.default_rng(1).uniform(0.2, 3.0, 200)
    c = fit_calibration(z, y, w)
    assert c.kind == "bcts"
    assert c.nll_after == pytest.approx(loop_nll(c, z, y, w), abs=1e-12)
    assert c.nll_before == pytest.approx(loop_nll(Calibration.identity(3), z, y, w), abs=1e-12)


def test_known_temperature_and_bias_are_recovered():
    c = fit_calibration(*sample(20000))
    assert c.temperature == pytest.approx(3.0, rel=0.05)
    assert np.array(c.bias) - c.bias[0] == pytest.approx([0.0, 0.5, 1.0], abs=0.08)


def test_fit_is_a_stationary_point_of_the_penalised_likelihood():
    z, y = sample(150)
    w = np.random.default_rng(1).uniform(0.2, 3.0, 150)
    c = fit_calibration(z, y, w)
    penalty = 0.5 * (w**2).sum() / w.sum() ** 2

    def objective(t):
        made = Calibration(kind="bcts", temperature=math.exp(-t[0]), bias=tuple(t[1:]))
        return loop_nll(made, z, y, w) + penalty * float(np.dot(t, t))

    best = np.array([-math.log(c.temperature), *c.bias])
    for i in range(4):
        step = np.eye(4)[i] * 1e-4
        slope = (objective(best + step) - objective(best - step)) / 2e-4
        assert abs(slope) < 1e-4


def test_integer_weights_equal_repeated_rows_up_to_the_prior():
    z, y = sample(400)
    w = np.random.default_rng(2).integers(1, 4, 400)
    weighted = fit_calibration(z, y, w)
    repeated = fit_calibration(np.repeat(z, w, axis=0), np.repeat(y, w))
    assert weighted.temperature == pytest.approx(repeated.temperature, rel=0.02)
    assert weighted.bias == pytest.approx(repeated.bias, abs=0.02)


@pytest.mark.parametrize("n", [1, 5, 19, 30, 60, 300])
@pytest.mark.parametrize("seed", range(4))
def test_never_worse_than_identity(n, seed):
    c = fit_calibration(*sample(n, seed=seed))
    assert c.nll_after <= c.nll_before
    assert n >= 20 or c.kind == "identity"


def test_separable_data_keep_a_temperature_above_zero():
    y = np.repeat(np.arange(3), 30)
    c = fit_calibration(np.eye(3)[y], y)
    assert 0.05 < c.temperature < 1.0
    assert c.kind == "bcts"


def test_rare_class_or_one_class_fits_less():
    z, y = sample(300)
    keep = np.r_[np.flatnonzero(y != 2), np.flatnonzero(y == 2)[:24]]
    assert fit_calibration(z[keep], y[keep]).kind == "temperature"
    assert fit_calibration(z[y == 0], y[y == 0]).kind == "identity"


def test_saturated_logits_stay_finite():
    z, y = sample(300)
    c = fit_calibration(z * 1e6, y)
    assert np.isfinite(c.log_posterior(z * 1e6)).all()
    assert np.isfinite(c.nll_after)


def test_json_round_trip_is_exact():
    import json

    z, y = sample(300)
    c = fit_calibration(z, y)
    again = Calibration.from_json(json.loads(json.dumps(c.to_json())))
    assert again == c
    with pytest.raises(DataError, match="temperature"):
        Calibration.from_json({**c.to_json(), "temperature": 0.0})
    with pytest.raises(DataError, match="not readable"):
        Calibration.from_json({})


def test_bad_arrays_are_data_errors():
    z, y = sample(30)
    with pytest.raises(DataError, match="NaN or infinite"):
        fit_calibration(np.where(np.arange(30)[:, None] == 3, np.nan, z), y)
    with pytest.raises(DataError, match="labels"):
        fit_calibration(z, y[:-1])
    with pytest.raises(DataError, match="weights"):
        fit_calibration(z, y, -np.ones(30))
    with pytest.raises(DataError, match="columns"):
        fit_calibration(z, y).log_posterior(z[:, :2])
