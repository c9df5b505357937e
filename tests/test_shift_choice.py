"""Vector scaling and the choice of a calibration by patients that its fit has not seen."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from daptkit.errors import DataError, UsageError
from daptkit.shift import (
    Calibration,
    PredictionRule,
    choose_calibration,
    fit_calibration,
    fit_chosen_rule,
    fit_rule,
)
from daptkit.shift.calibration import KINDS
from daptkit.shift.choice import _drawn
from daptkit.shift.folds import grouped_folds


def world(kind: str, n: int = 1500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that calibration of ``kind`` makes right, and labels."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, 3)) * 1.5
    p = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    y = np.array([rng.choice(3, p=row) for row in p])
    made = {
        "identity": true,
        "temperature": 3.0 * true,
        "bcts": 3.0 * (true - np.array([0.0, 1.0, 2.0])),
        "vector": (true - np.array([0.0, 1.0, 2.0])) / np.array([0.2, 1.0, 4.0]),
    }
    return made[kind], y


def loop_nll(c: Calibration, z, y, w) -> float:
    total = 0.0
    for row, label, weight in zip(z, y, w, strict=True):
        values = [s * v + b for s, v, b in zip(c.scale, row, c.bias, strict=True)]
        total -= weight * (values[label] - math.log(sum(math.exp(v) for v in values)))
    return total / sum(w)


def test_vector_scaling_is_the_formula_and_recovers_the_truth():
    z, y = world("vector", n=20000)
    w = np.random.default_rng(1).uniform(0.5, 2.0, len(y))
    c = fit_calibration(z, y, w, kind="vector")
    assert c.kind == "vector" and c.temperature == 1.0
    assert c.nll_after == pytest.approx(loop_nll(c, z, y, w), abs=1e-10)
    assert c.scale == pytest.approx([0.2, 1.0, 4.0], rel=0.1)
    assert np.array(c.bias) - c.bias[0] == pytest.approx([0.0, 1.0, 2.0], abs=0.1)
    for row, got in zip(z[:5], c.log_posterior(z[:5]), strict=True):
        values = [s * v + b for s, v, b in zip(c.scale, row, c.bias, strict=True)]
        assert got == pytest.approx(
            [v - math.log(sum(math.exp(u) for u in values)) for v in values]
        )


def test_vector_fit_is_a_stationary_point_of_the_penalised_likelihood():
    z, y = world("vector", n=150)
    w = np.random.default_rng(1).uniform(0.2, 3.0, 150)
    c = fit_calibration(z, y, w, kind="vector")
    penalty = 0.5 * (w**2).sum() / w.sum() ** 2

    def objective(t):
        made = Calibration(
            kind="vector", temperature=1.0, scale=tuple(np.exp(t[:3])), bias=tuple(t[3:])
        )
        return loop_nll(made, z, y, w) + penalty * float(np.dot(t, t))

    best = np.array([*np.log(c.scale), *c.bias])
    for i in range(6):
        step = np.eye(6)[i] * 1e-4
        assert abs(objective(best + step) - objective(best - step)) / 2e-4 < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_that_made_the_data_is_chosen(kind):
    found = choose_calibration(*world(kind))
    assert found.calibration.kind == kind, found
    assert found.folds == 5 and set(found.nll) == set(KINDS)


def test_held_out_nll_by_a_loop():
    z, y = world("bcts", n=200)
    groups = np.arange(200) // 4
    w = np.random.default_rng(1).uniform(0.5, 2.0, 200)
    found = choose_calibration(z, y, w, groups=groups, seed=2)
    fold = grouped_folds(y, groups, 5, 2)
    assert all(len(set(fold[groups == p].tolist())) == 1 for p in range(50))
    losses = {}
    for kind in KINDS:
        losses[kind] = np.zeros(200)
        for k in range(5):
            train = fold != k
            c = fit_calibration(z[train], y[train], w[train], kind=kind)
            for i in np.flatnonzero(~train):
                losses[kind][i] = -c.log_posterior(z[i : i + 1])[0, y[i]]
        assert found.nll[kind] == pytest.approx(sum(w * losses[kind]) / sum(w))
    best = min(found.nll, key=found.nll.get)
    for kind in KINDS:
        d = losses[kind] - losses[best]
        mean = sum(w * d) / sum(w)
        sums = [sum(w[i] * (d[i] - mean) for i in range(200) if groups[i] == p) for p in range(50)]
        error = math.sqrt(50 / 49 * sum(s * s for s in sums)) / sum(w)
        assert found.standard_error[kind] == pytest.approx(error, abs=1e-12)


def test_luck_of_a_rich_kind_is_not_chosen():
    """The lowest nll is often that of more parameters than there is evidence for."""
    lucky = 0
    for seed in range(6):
        found = choose_calibration(*world("identity", n=150, seed=seed))
        lowest = min(found.nll, key=found.nll.get)
        near = [k for k in KINDS if found.nll[k] <= found.nll[lowest] + found.standard_error[k]]
        assert found.calibration.kind == near[0]
        lucky += near[0] != lowest
    assert lucky > 0


def test_noise_of_copied_patients_does_not_pass_for_likelihood():
    """Images of one patient in both parts would reward the kind with most parameters."""
    rng = np.random.default_rng(3)
    z, y = np.repeat(rng.normal(size=(12, 6)), 30, axis=0), np.repeat(np.arange(12) % 6, 30)
    groups = np.repeat(np.arange(12), 30)
    by_patient = choose_calibration(z, y, groups=groups)
    by_image = choose_calibration(z, y)
    assert by_image.calibration.kind != "identity"
    assert by_image.nll["vector"] < by_patient.nll["vector"] - 0.2


def test_what_cannot_be_compared_is_a_temperature_or_nothing_and_is_said():
    z, y = world("bcts", n=300)
    found = choose_calibration(z, y, groups=np.zeros(300))
    assert found.folds == 0 and found.nll == {} and "one patient" in found.note
    assert found.calibration == fit_calibration(z, y, kind="temperature")
    assert json.loads(json.dumps(found.to_json()))["folds"] == 0
    few = choose_calibration(z[:19], y[:19])
    assert few.calibration.kind == "identity" and "fewer than 20 images" in few.note
    wide = np.random.default_rng(0).normal(size=(20, 20))
    assert choose_calibration(wide, np.arange(20)).folds == 0  # no class has two images


def test_values_per_class_need_images_of_every_class():
    z, y = world("vector", n=900)
    assert choose_calibration(z, y).note == ""
    rows = np.sort(np.concatenate([np.flatnonzero(y != 2), np.flatnonzero(y == 2)[:24]]))
    found = choose_calibration(z[rows], y[rows])
    assert set(found.nll) == {"identity", "temperature"}
    assert found.note.startswith("1 of 3 classes have fewer than 25 held-out images, so")
    none = choose_calibration(z[y != 2], y[y != 2])
    assert set(none.nll) == {"identity", "temperature"} and "1 of them none" in none.note
    assert none.calibration.bias == (0.0, 0.0, 0.0)
    # A class that training gave no weight has no say, whatever its number of images.
    assert set(choose_calibration(z, y, np.where(y == 2, 0.0, 1.0)).nll) == set(none.nll)
    assert set(choose_calibration(z[rows], y[rows], kinds=("bcts", "vector")).nll) == {
        "bcts",
        "vector",
    }


def test_a_limit_draws_whole_patients_and_fits_on_all():
    z, y = world("vector", n=900)
    groups = np.arange(900) // 7
    found = choose_calibration(z, y, groups=groups, limit=400, seed=3)
    assert found.calibration == fit_calibration(z, y, kind=found.calibration.kind)
    rows = _drawn(groups, 400, 3)
    assert 400 <= len(rows) < 407
    assert all((np.isin(np.flatnonzero(groups == p), rows).sum()) in (0, 7) for p in range(128))
    part = choose_calibration(z[rows], y[rows], groups=groups[rows], seed=3)
    assert found.nll == part.nll
    assert choose_calibration(z, y, groups=groups, limit=900) == choose_calibration(
        z, y, groups=groups
    )


def test_kinds_can_be_forced_and_unknown_ones_are_told():
    z, y = world("bcts", n=60)
    assert fit_calibration(z, y).kind == "temperature"  # too few images of a class for biases
    assert [fit_calibration(z, y, kind=kind).kind for kind in KINDS] == list(KINDS)
    assert fit_calibration(z[:10], y[:10], kind="vector").kind == "identity"
    with pytest.raises(UsageError, match="Did you mean 'vector'"):
        fit_calibration(z, y, kind="vectors")


def test_stored_kinds_read_back_and_old_ones_stay_as_they_were():
    z, y = world("vector", n=300)
    made = fit_calibration(z, y, kind="vector")
    stored = json.loads(json.dumps(made.to_json()))
    assert Calibration.from_json(stored) == made
    old = fit_calibration(z, y).to_json()
    assert list(old) == ["kind", "temperature", "bias", "n", "nll_before", "nll_after"]
    assert Calibration.from_json(old) == fit_calibration(z, y)
    assert Calibration.from_json({**old, "kind": "identity"}).kind == "identity"
    with pytest.raises(DataError, match="update daptkit"):
        Calibration.from_json({**old, "kind": "matrix"})
    for wrong in ({"kind": "matrix"}, {"scale": [1.0, 2.0]}, {"scale": [1.0, -2.0, 1.0]}):
        with pytest.raises(DataError, match="update daptkit"):
            Calibration.from_json({**stored, **wrong})
    with pytest.raises(DataError, match="update daptkit"):
        Calibration.from_json({**stored, "scale": []})


def test_rule_takes_the_chosen_calibration_and_keeps_its_default():
    z, y = world("vector", n=600)
    names = ("a", "b", "c")
    default = fit_rule(z, y, None, None, "map", names)
    assert default.calibration == fit_calibration(z, y)
    chosen = fit_rule(z, y, None, None, "map", names, calibration="cross-validated")
    assert chosen.calibration.kind == "vector"
    again = PredictionRule.from_json(json.loads(json.dumps(chosen.to_json())))
    assert (again.posterior(z) == chosen.posterior(z)).all()
    assert fit_rule(z, y, None, None, "map", names, calibration="identity").calibration.n == 600
    with pytest.raises(UsageError, match="calibration"):
        fit_rule(z, y, None, None, "map", names, calibration="crossvalidated")
    rule, choice = fit_chosen_rule(z, y, None, None, "map", names)
    assert rule.to_json() == chosen.to_json() and choice.calibration == rule.calibration
    assert set(choice.nll) == {"temperature", "bcts", "vector"}
