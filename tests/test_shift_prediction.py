"""The prediction rule: one correction, three decisions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from daptkit.errors import DataError, UsageError
from daptkit.shift import Calibration, PredictionRule, fit_rule, sensitivity_threshold

RNG = np.random.default_rng(0)


def rule(q=(0.7, 0.2, 0.1), **values) -> PredictionRule:
    return PredictionRule(
        classes=("a", "b", "c"),
        calibration=Calibration(kind="bcts", temperature=2.0, bias=(0.1, -0.2, 0.3)),
        source_prior=np.array([0.2, 0.3, 0.5]),
        target_prior=None if q is None else np.array(q),
        **values,
    )


def loop_posterior(row, pi, q):
    values = [v / 2.0 + b for v, b in zip(row, (0.1, -0.2, 0.3), strict=True)]
    mass = [math.exp(v) * t / s for v, t, s in zip(values, q, pi, strict=True)]
    return [m / sum(mass) for m in mass]


def test_posterior_is_the_formula():
    z = RNG.normal(size=(20, 3)) * 3
    pi, q = (0.2, 0.3, 0.5), (0.7, 0.2, 0.1)
    for row, got, raw in zip(z, rule().posterior(z), rule().posterior(z, "source"), strict=True):
        assert got == pytest.approx(loop_posterior(row, pi, q), abs=1e-12)
        assert raw == pytest.approx(loop_posterior(row, pi, pi), abs=1e-12)


def test_decisions_are_the_formulas():
    z = RNG.normal(size=(200, 3)) * 3
    pi, q = (0.2, 0.3, 0.5), (0.7, 0.2, 0.1)
    for i, row in enumerate(z):
        p = loop_posterior(row, pi, q)
        assert rule().predict(z)[i] == int(np.argmax(p))
        assert rule().predict(z, decide="balanced")[i] == int(np.argmax(np.divide(p, q)))


def test_balanced_does_not_depend_on_the_target_prior():
    z = RNG.normal(size=(100, 3)) * 3
    wanted = rule().predict(z, decide="balanced")
    assert (rule(q=(0.05, 0.05, 0.9)).predict(z, decide="balanced") == wanted).all()
    assert (rule().predict(z, "source", decide="balanced") == wanted).all()
    assert (rule().predict(z) != wanted).any()


@pytest.mark.parametrize(("value", "needed"), [(0.95, 19), (0.96, 20), (1.0, 20), (0.01, 1)])
def test_threshold_is_the_largest_that_reaches_the_sensitivity(value, needed):
    scores = RNG.permutation(np.linspace(0.1, 0.9, 20))
    t = sensitivity_threshold(scores, value)
    assert (scores >= t).sum() == needed


def test_sens_rule_reaches_its_sensitivity_and_ignores_the_prior():
    y = RNG.integers(0, 3, 600)
    z = RNG.normal(size=(600, 3)) + 1.2 * np.eye(3)[y]
    decide = "sens=b:0.95"
    made = fit_rule(z, y, None, (0.9, 0.05, 0.05), decide, ("a", "b", "c"))
    found = made.predict(z) == 1
    assert found[y == 1].mean() >= 0.95
    assert found[y == 1].mean() < 0.97
    assert (made.predict(z, "source") == 1).tolist() == found.tolist()
    others = made.posterior(z)[~found]
    others[:, 1] = -1.0
    assert (made.predict(z)[~found] == others.argmax(1)).all()


def test_sens_rule_needs_a_known_class_a_value_and_a_threshold():
    z = RNG.normal(size=(40, 2))
    y = np.repeat([0, 0], 20)
    names = ("normal", "pneumonia")
    with pytest.raises(UsageError, match="Did you mean 'pneumonia'"):
        fit_rule(z, y, None, None, "sens=pneumona:0.9", names)
    for bad in ("sens=normal", "sens=normal:1.5", "sens=normal:0", "sens=normal:nan", "maps"):
        with pytest.raises(UsageError):
            fit_rule(z, y, None, None, bad, names)
    with pytest.raises(DataError, match="no source validation image"):
        fit_rule(z, y, None, None, "sens=pneumonia:0.9", names)
    with pytest.raises(UsageError, match="run adapt with --decide"):
        rule().predict(RNG.normal(size=(3, 3)), decide="sens=a:0.9")
    with pytest.raises(UsageError, match="--domain"):
        rule().posterior(RNG.normal(size=(3, 3)), "targt")


def test_class_name_may_hold_a_colon():
    y = np.repeat([0, 1], 30)
    z = RNG.normal(size=(60, 2)) + np.eye(2)[y]
    made = fit_rule(z, y, None, None, "sens=grade:2:0.9", ("grade:1", "grade:2"))
    assert (made.predict(z) == 1)[y == 1].mean() >= 0.9


def test_zero_priors_and_saturated_logits_stay_finite():
    z = np.array([[1e5, 0.0, -1e5], [0.0, 0.0, 0.0]])
    made = rule(q=(1.0, 0.0, 0.0))
    assert np.isfinite(made.log_posterior(z)).all()
    assert made.posterior(z).sum(1) == pytest.approx([1.0, 1.0])
    assert set(made.predict(z)) == {0}


def test_source_prior_is_the_weighted_mean_calibrated_posterior():
    y = RNG.integers(0, 3, 500)
    z = RNG.normal(size=(500, 3)) + 2 * np.eye(3)[y]
    w = np.array([0.2, 1.0, 3.0])
    made = fit_rule(z, y, w, None, "map", ("a", "b", "c"))
    p = np.exp(made.calibration.log_posterior(z))
    total = np.zeros(3)
    for row, label in zip(p, y, strict=True):
        total += w[label] * row
    assert made.source_prior == pytest.approx(total / w[y].sum(), abs=1e-12)


def test_json_round_trip_predicts_the_same():
    y = RNG.integers(0, 3, 300)
    z = RNG.normal(size=(300, 3)) + np.eye(3)[y]
    made = fit_rule(z, y, None, (0.6, 0.3, 0.1), "sens=c:0.9", ("a", "b", "c"))
    again = PredictionRule.from_json(json.loads(json.dumps(made.to_json())))
    assert (again.posterior(z) == made.posterior(z)).all()
    assert (again.predict(z) == made.predict(z)).all()
    with pytest.raises(DataError):
        PredictionRule.from_json({"classes": []})


def gaussians(n, prior, seed):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < prior).astype(int)
    return rng.normal(size=n) + 2.0 * y, y


def nll(rule, x, y, bias):
    return -rule.log_posterior(logits(x, bias))[np.arange(len(y)), y].mean()


def logits(x, bias):
    """Exact logits of N(0, 1) against N(2, 1) under the prior odds exp(bias)."""
    return np.stack([np.zeros_like(x), 2.0 * x - 2.0 + bias], axis=1)


def test_prior_is_corrected_once_whether_or_not_training_was_weighted():
    """50% -> 5%: a model trained under the weights w = q / p needs no second correction."""
    x, y = gaussians(40000, 0.5, 0)
    x_t, y_t = gaussians(40000, 0.05, 1)
    q = (0.95, 0.05)
    weights = (1.9, 0.1)
    odds = math.log(0.05 / 0.95)
    plain = fit_rule(logits(x, 0.0), y, None, q, "map", ("0", "1"))
    weighted = fit_rule(logits(x, odds), y, weights, q, "map", ("0", "1"))
    twice = PredictionRule(
        ("0", "1"), weighted.calibration, np.array([0.5, 0.5]), np.array(q), "map", {}
    )
    exact = PredictionRule(
        ("0", "1"), Calibration.identity(2), np.array([0.95, 0.05]), None, "map", {}
    )
    best = nll(exact, x_t, y_t, odds)
    assert nll(plain, x_t, y_t, 0.0) == pytest.approx(best, abs=2e-3)
    assert nll(weighted, x_t, y_t, odds) == pytest.approx(best, abs=2e-3)
    assert nll(twice, x_t, y_t, odds) > best + 0.03

    def sensitivity(rule, bias, decide):
        return (rule.predict(logits(x_t, bias), decide=decide) == 1)[y_t == 1].mean()

    once = sensitivity(exact, odds, "map")
    assert sensitivity(plain, 0.0, "map") == pytest.approx(once, abs=0.02)
    assert sensitivity(weighted, odds, "map") == pytest.approx(once, abs=0.02)
    assert sensitivity(twice, odds, "map") < once - 0.1
    assert sensitivity(weighted, odds, "balanced") == pytest.approx(0.841, abs=0.03)


def weighted_model(rare: int):
    """A model trained under w; its rule, fitted on ``rare`` held-out images of class 1."""
    x, y = gaussians(20000, 0.2, 2)
    keep = np.r_[np.flatnonzero(y == 0)[: 4 * rare], np.flatnonzero(y == 1)[:rare]]
    weights = np.array([0.4, 3.4])  # mean 1 under (0.8, 0.2): training saw (0.32, 0.68)
    odds = math.log(0.68 / 0.32)
    return x[keep], y[keep], weights, odds


@pytest.mark.parametrize("rare", [20, 2000])  # too few images for biases, and enough
@pytest.mark.parametrize("domain", ["source", "target"])
def test_weights_of_training_are_taken_back_where_no_target_prior_is_known(rare, domain):
    x, y, weights, odds = weighted_model(rare)
    rule = fit_rule(logits(x, odds), y, weights, None, "map", ("0", "1"))
    assert rule.calibration.kind == ("temperature" if rare < 25 else "bcts")
    grid = np.linspace(-2, 4, 50)
    under_source = 1 / (1 + np.exp(-(2 * grid - 2 + math.log(0.2 / 0.8))))
    found = rule.posterior(logits(grid, odds), domain)[:, 1]
    assert found == pytest.approx(under_source, abs=0.08)
    assert rule.prior_in_force(domain) == pytest.approx([0.8, 0.2], abs=0.05)


def test_a_target_prior_leaves_the_source_domain_to_the_sources_prior():
    x, y, weights, odds = weighted_model(2000)
    plain = fit_rule(logits(x, odds), y, weights, None, "map", ("0", "1"))
    made = fit_rule(logits(x, odds), y, weights, (0.3, 0.7), "map", ("0", "1"))
    z = logits(np.linspace(-2, 4, 50), odds)
    assert made.posterior(z, "source") == pytest.approx(plain.posterior(z, "target"))
    assert made.prior_in_force("target") == pytest.approx([0.3, 0.7])
    again = PredictionRule.from_json(json.loads(json.dumps(made.to_json())))
    assert (again.posterior(z, "source") == made.posterior(z, "source")).all()


def test_a_class_of_weight_zero_stays_finite():
    x, y, _, odds = weighted_model(2000)
    rule = fit_rule(logits(x, odds), y, (1.25, 0.0), None, "map", ("0", "1"))
    assert np.isfinite(rule.log_posterior(logits(x, odds), "source")).all()
