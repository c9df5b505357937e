"""The terms of the bound on the target error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from daptkit.assess.bound import bound_panel, joint_error
from daptkit.errors import DataError
from daptkit.shift import proxy_a_distance
from daptkit.shift.folds import grouped_folds

RNG = np.random.default_rng(0)


def site(n: int, move: float = 0.0, flip: bool = False, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, 4))
    x[:, 0] += 3.0 * y
    x[:, 1] += move
    return x, (1 - y if flip else y), np.arange(n) // 4


def test_terms_are_those_of_the_bound():
    x, y, g = site(200)
    t, _, g_t = site(200, move=1.0, seed=1)
    predicted = np.where(np.arange(200) % 5 == 0, 1 - y, y)
    found = bound_panel(x, y, predicted, t, source_groups=g, target_groups=g_t)
    assert found.source_error["value"] == pytest.approx(0.2)
    assert found.source_error["low"] < 0.2 < found.source_error["high"]
    distance = proxy_a_distance(x, t, source_groups=g, target_groups=g_t)
    assert found.divergence == pytest.approx(distance / 2)
    assert 0.1 < found.divergence < 0.7
    assert found.joint_error is None and found.total is None
    assert any("unknown (no labelled image" in line for line in found.text)
    assert "total" in json.loads(json.dumps(found.to_json()))


def test_lambda_is_small_where_one_rule_serves_both_and_large_where_none_does():
    """Concept shift shows in lambda alone: the images and the source error are the same."""
    x, y, g = site(200)
    figures = {}
    for flip in (False, True):
        t, labels, g_t = site(120, flip=flip, seed=1)
        figures[flip] = bound_panel(
            x,
            y,
            y,
            t,
            labelled_features=t[:60],
            labelled_classes=labels[:60],
            source_groups=g,
            target_groups=g_t,
            labelled_groups=g_t[:60],
        )
    assert figures[False].divergence == figures[True].divergence
    assert figures[False].joint_error < 0.3
    assert 0.7 < figures[True].joint_error <= 1.3
    whole = figures[False]
    assert whole.total == pytest.approx(
        whole.source_error["value"] + whole.divergence + whole.joint_error
    )
    assert "at most" in whole.text[-1]
    far = site(120, move=9.0, seed=1)[0]
    promised = bound_panel(x, y, y, far, labelled_features=far, labelled_classes=y[:120])
    assert promised.total > 1.0 and "promise nothing" in promised.text[-1]
    assert whole.n_labelled == 60


def test_joint_error_by_a_loop_over_folds_that_are_whole_patients():
    x, y, g = site(60)
    t, labels, g_t = site(40, flip=True, seed=1)  # the domains pull apart, so weights matter
    got = joint_error(x, y, t, labels, g, g_t)
    fold_s, fold_t = grouped_folds(y, g, 5), grouped_folds(labels, g_t, 5)
    for fold, groups in ((fold_s, g), (fold_t, g_t)):
        assert all(len(set(fold[groups == p])) == 1 for p in set(groups.tolist()))
    both = np.vstack([x, t])
    centre, scale = both.mean(0), both.std(0)
    errors = []
    for values, truth, fold in ((x, y, fold_s), (t, labels, fold_t)):
        wrong = 0
        for k in range(5):
            model = LogisticRegression(C=0.1, max_iter=500)
            train = np.vstack([x[fold_s != k], t[fold_t != k]])
            classes = np.concatenate([y[fold_s != k], labels[fold_t != k]])
            weights = np.repeat(
                [0.5 * 100 / 60, 0.5 * 100 / 40], [sum(fold_s != k), sum(fold_t != k)]
            )
            model.fit((train - centre) / scale, classes, weights)
            test = fold == k
            wrong += sum(model.predict((values[test] - centre) / scale) != truth[test])
        errors.append(wrong / len(truth))
    assert got == pytest.approx(sum(errors))


def test_a_copied_patient_does_not_make_lambda_small():
    """Noise labels by patient: only a model that saw the patient is right."""
    x = np.repeat(RNG.normal(size=(30, 50)), 6, axis=0)
    y = np.repeat(RNG.integers(0, 2, 30), 6)
    g = np.repeat(np.arange(30), 6)
    assert joint_error(x, y, x, y, g, g) > 0.6
    alone = np.arange(180)
    assert joint_error(x, y, x, y, alone, alone) < 0.3


def test_too_little_stays_unknown_and_is_said():
    x, y, _ = site(60)
    t, labels, _ = site(12, seed=1)
    few = bound_panel(x, y, y, t, labelled_features=t[:9], labelled_classes=labels[:9])
    assert few.joint_error is None and "9 labelled images are too few" in few.text[-1]
    assert np.isnan(few.divergence) and few.to_json()["half_divergence"] is None
    assert "could not be measured" in few.text[1]
    one_patient = bound_panel(
        x, y, y, t, labelled_features=t, labelled_classes=labels, labelled_groups=np.zeros(12)
    )
    assert one_patient.joint_error is None
    assert bound_panel(x, y, y, t, source_groups=np.zeros(60)).source_error["low"] is None


def test_arrays_that_do_not_fit_are_told():
    x, y, _ = site(60)
    with pytest.raises(DataError, match="both features and classes"):
        bound_panel(x, y, y, x, labelled_features=x)
    with pytest.raises(DataError, match="columns"):
        bound_panel(x, y, y, x[:, :2])
    with pytest.raises(DataError, match="labels of shape"):
        bound_panel(x, y[:-1], y, x)
