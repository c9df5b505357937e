"""Label-free scores against plain loops, and a choice that they must not fool."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from daptkit.assess.identity import (
    beyond_prior,
    breadth,
    chance_corrected_agreement,
    swapped_classes,
    unexplained_collapse,
)
from daptkit.assess.scores import SCORES, SPECS, ScoreInputs, score_inputs, score_weights, select
from daptkit.assess.scores.combine import _weighted_median
from daptkit.assess.scores.importance_weighted_risk import controlled_risk, density_ratio
from daptkit.errors import DataError, UsageError
from daptkit.plugin import ScoreSpec


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def posterior_for(y: np.ndarray, k: int, seed: int, skill: float = 3.0) -> np.ndarray:
    """Return posteriors that mostly favour ``y``."""
    z = np.random.default_rng(seed).normal(size=(len(y), k))
    z[np.arange(len(y)), y] += skill
    return softmax(1.5 * z)


def one(m: int = 40, k: int = 3, seed: int = 0, **values: object) -> ScoreInputs:
    rng = np.random.default_rng(seed)
    y_s, y_t = rng.integers(0, k, 50), rng.integers(0, k, m)
    features = {
        "source_features": rng.normal(size=(50, 4)) + y_s[:, None],
        "target_features": rng.normal(size=(m, 4)) + y_t[:, None] + 0.5,
    }
    return score_inputs(
        posterior_for(y_t, k, seed), posterior_for(y_s, k, seed + 1), y_s, **(features | values)
    )


def score(name: str, inputs: ScoreInputs) -> float:
    return SCORES[name][0](inputs)


def test_entropy_and_information_maximisation_by_loops():
    inputs = one()
    p = inputs.target_posterior
    entropy = sum(-sum(v * math.log(v) for v in row) for row in p) / len(p)
    assert score("entropy", inputs) == pytest.approx(entropy)
    mean = [sum(row[k] for row in p) / len(p) for k in range(3)]
    diversity = -sum(v * math.log(v) for v in mean)
    assert score("im", inputs) == pytest.approx(diversity - math.log(3) - entropy)
    q = [0.7, 0.2, 0.1]
    divergence = sum(v * math.log(v / r) for v, r in zip(mean, q, strict=True))
    assert score("im", one(target_prior=q)) == pytest.approx(-divergence - entropy)


def test_soft_neighbourhood_density_by_loops():
    inputs = one()
    rows = [row / math.sqrt(sum(v * v for v in row)) for row in inputs.target_posterior]
    total = 0.0
    for i, u in enumerate(rows):
        near = [math.exp(float(u @ v) / 0.05) for j, v in enumerate(rows) if j != i]
        shares = [v / sum(near) for v in near]
        total -= sum(s * math.log(s) for s in shares if s > 0)
    assert score("snd", inputs) == pytest.approx(total / len(rows), rel=1e-9)
    assert np.isnan(score("snd", one(m=1)))


def test_nuclear_norm_is_the_sum_of_singular_values():
    p = one().target_posterior
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(p.T @ p), 0))
    assert score("bnm", one()) == pytest.approx(values.sum() / math.sqrt(40 * 3))
    even = score_inputs(np.eye(3)[np.arange(30) % 3], np.eye(3), np.arange(3))
    assert score("bnm", even) == pytest.approx(1.0)


def test_atc_score_is_its_accuracy_estimate():
    inputs = one()
    wrong = int((inputs.source_posterior.argmax(1) != inputs.source_labels).sum())
    threshold = sorted(inputs.source_posterior.max(1))[wrong]
    loop = sum(1 for v in inputs.target_posterior.max(1) if v >= threshold) / 40
    assert score("atc", inputs) == pytest.approx(loop)


def test_controlled_risk_is_the_formula_and_keeps_the_mean():
    rng = np.random.default_rng(0)
    w, loss = rng.gamma(1.0, 1.0, 200), (rng.random(200) < 0.3).astype(float)
    product = [a * b for a, b in zip(w, loss, strict=True)]
    m_p, m_w = sum(product) / 200, sum(w) / 200
    covariance = sum((a - m_p) * (b - m_w) for a, b in zip(product, w, strict=True)) / 200
    eta = -covariance / (sum((b - m_w) ** 2 for b in w) / 200)
    assert controlled_risk(loss, w) == pytest.approx(m_p + eta * m_w - eta)
    assert controlled_risk(loss, np.ones(200)) == pytest.approx(loss.mean())
    # Dropping the control variate would leave a noisier estimate of the same 0.7.
    plain, controlled = [], []
    for seed in range(200):
        draw = np.random.default_rng(seed)
        w, loss = draw.gamma(0.5, 2.0, 200), (draw.random(200) < 0.7).astype(float)
        plain.append((w * loss).mean())
        controlled.append(controlled_risk(loss, w))
    assert np.mean(controlled) == pytest.approx(0.7, abs=0.01)
    assert np.std(controlled) < 0.6 * np.std(plain)


def test_density_ratio_is_that_of_two_gaussians_and_is_capped():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(2000, 1)), rng.normal(size=(1000, 1)) + 1.0
    w = density_ratio(source, target, np.arange(2000), np.arange(1000))
    assert np.log(w) == pytest.approx(source[:, 0] - 0.5, abs=0.35)
    assert w.mean() == pytest.approx(1.0, abs=0.1)
    far = density_ratio(source, target + 20, np.arange(2000), np.arange(1000))
    assert far.max() <= 20.0


def test_density_ratio_holds_out_patients():
    """A patient of its own in the training folds would tell each image's domain."""
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(40, 60)), 10, axis=0)
    groups = np.repeat(np.arange(40), 10)
    w = density_ratio(features[:200], features[200:], groups[:200], groups[200:] - 20)
    by_image = density_ratio(features[:200], features[200:], np.arange(200), np.arange(200))
    # Without shift the mean log ratio is about 0; having seen the patient makes it certain.
    assert np.mean(np.log(by_image)) < -1.5
    assert np.mean(np.log(w)) > np.mean(np.log(by_image)) + 1.0


def test_importance_weights_find_the_errors_that_matter():
    rng = np.random.default_rng(0)
    x_s, x_t = rng.normal(size=(600, 1)), rng.normal(size=(600, 1)) * 0.5 + 1.5
    y = np.zeros(600, int)
    right, wrong = np.array([0.9, 0.1]), np.array([0.1, 0.9])
    p_t = np.tile(right, (600, 1))

    def risk(bad: np.ndarray) -> float:
        p_s = np.where(bad[:, None], wrong, right)
        return score("iwcv", score_inputs(p_t, p_s, y, source_features=x_s, target_features=x_t))

    where_target_is, elsewhere = risk(x_s[:, 0] > 1.0), risk(x_s[:, 0] < -1.0)
    assert where_target_is > 0.5 > 0.1 > elsewhere
    assert np.isnan(score("iwcv", one(source_features=None, target_features=None)))
    assert np.isnan(score("iwcv", one(source_groups=np.arange(50) % 3)))
    # A fold of which the source has no patient leaves none of its images out.
    assert np.isfinite(score("iwcv", one(source_groups=np.arange(50) % 4)))


def test_specs_name_their_functions():
    for spec in SPECS:
        assert isinstance(spec, ScoreSpec)
        module, _, name = spec.factory.partition(":")
        function, higher = SCORES[spec.name]
        assert getattr(importlib.import_module(module), name) is function
        assert spec.higher_is_better == higher and spec.summary


def test_bad_inputs_are_told():
    p, y = np.eye(3), np.arange(3)
    with pytest.raises(DataError, match="both domains"):
        score_inputs(p, p, y, source_features=p)
    with pytest.raises(DataError, match="different numbers"):
        score_inputs(p, p, y, source_features=p, target_features=p[:2])
    with pytest.raises(DataError, match="classes"):
        score_inputs(np.eye(2), p, y)
    with pytest.raises(UsageError, match="no candidate"):
        select({}, one())
    with pytest.raises(UsageError, match="kind of shift"):
        select({"a": one()}, one(), kind="moved")


# Identity of classes


def test_kappa_by_loops():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 3, 80)
    b = np.where(rng.random(80) < 0.5, a, rng.integers(0, 3, 80))
    observed = sum(int(i == j) for i, j in zip(a, b, strict=True)) / 80
    expected = sum((a == k).mean() * (b == k).mean() for k in range(3))
    wanted = (observed - expected) / (1 - expected)
    assert chance_corrected_agreement(a, b, 3) == pytest.approx(wanted)
    assert chance_corrected_agreement(a * 0, a * 0, 3) == 1.0


def test_swaps_are_found_and_repairs_are_not():
    y = np.repeat([0, 1, 2], [60, 30, 10])
    assert swapped_classes(y, y, 3) == ()
    assert swapped_classes(y, np.array([1, 0, 2])[y], 3) == ((0, 1),)
    assert swapped_classes(y, np.array([1, 2, 0])[y], 3) == ((0, 2, 1),)
    # Two rare classes change names: the whole's agreement hardly moves.
    rare = np.repeat([0, 1, 2], [500, 12, 12])
    assert swapped_classes(rare, np.array([0, 2, 1])[rare], 3) == ((1, 2),)
    assert swapped_classes(rare[:505], np.array([0, 2, 1])[rare[:505]], 3) == ()
    # The reference merged 1 into 2; the other model tells them apart again.
    assert swapped_classes(np.where(y == 1, 2, y), y, 3) == ()
    # At chance no assignment is much better than another.
    rng = np.random.default_rng(0)
    assert swapped_classes(rng.integers(0, 3, 600), rng.integers(0, 3, 600), 3) == ()


def test_collapse_unless_the_prior_allows_it():
    predicted = np.repeat([0, 1], [4, 96])
    assert unexplained_collapse(predicted, 2) == 1
    assert unexplained_collapse(np.repeat([0, 1], [5, 95]), 2) is None
    assert unexplained_collapse(predicted, 2, np.array([0.2, 0.99])) is None
    assert unexplained_collapse(predicted, 2, np.array([0.8, 0.5])) == 1


def test_breadth_is_the_exponential_of_the_entropy():
    predicted = np.repeat([0, 1, 3], [50, 30, 20])
    entropy = -sum(s * math.log(s) for s in (0.5, 0.3, 0.2))
    assert breadth(predicted, 4) == pytest.approx(math.exp(entropy))
    assert breadth(np.arange(8) % 4, 4) == pytest.approx(4.0)
    assert breadth(np.zeros(8, int), 4) == 1.0


def test_beyond_prior_accounts_for_known_confusions():
    y = np.repeat([0, 1], [500, 500])
    confused = np.where((np.arange(1000) % 5 == 0) & (y == 0), 1, y)  # recall of 0 is 0.8
    source = np.eye(2)[confused]
    target = np.eye(2)[np.repeat([0, 1], [400, 600])]  # implies q = 0.5, not 0.4
    assert beyond_prior(source, y, target, np.array([0.5, 0.5]), np.array([0.5, 0.5])) < 0.01
    outside = beyond_prior(source, y, target, np.array([0.7, 0.1]), np.array([0.9, 0.3]))
    assert outside == pytest.approx(0.2 + 0.2, abs=0.01)


# The choice


class Site:
    """A source of even classes and a target of ``prior``, with candidates made to order."""

    def __init__(self, prior: tuple[float, ...], seed: int = 0, m: int = 300) -> None:
        rng = np.random.default_rng(seed)
        self.k = len(prior)
        self.y_s, self.y_t = rng.integers(0, self.k, 200), rng.choice(self.k, m, p=prior)
        self.seed = seed

    def candidate(
        self, skill: float, target: np.ndarray | None = None, source_skill: float = 3.0, **values
    ) -> ScoreInputs:
        self.seed += 1
        y_t = self.y_t if target is None else target
        return score_inputs(
            posterior_for(y_t, self.k, self.seed, skill),
            posterior_for(self.y_s, self.k, self.seed + 100, source_skill),
            self.y_s,
            **values,
        )


@pytest.mark.parametrize("kind", [None, "none", "covariate", "label", "both", "unclear"])
def test_known_failures_never_win(kind):
    site = Site((0.2, 0.3, 0.5))
    reference = site.candidate(1.5)
    candidates = {
        "collapsed": site.candidate(9.0, np.zeros(300, int)),
        "swapped": site.candidate(9.0, np.array([1, 0, 2])[site.y_t]),
        "forgot": site.candidate(9.0, source_skill=0.5),
        "collapsing": site.candidate(9.0, np.where(np.arange(300) % 5 < 4, 2, site.y_t)),
        "random": site.candidate(9.0, np.random.default_rng(1).integers(0, 3, 300)),
        "good": site.candidate(3.0),
        "weak": site.candidate(1.2),
    }
    found = select(candidates, reference, kind=kind)
    assert found.chosen == "good"
    assert set(found.vetoes) == {"collapsed", "collapsing", "swapped", "forgot", "random"}
    assert "same class" in found.vetoes["collapsed"][0]
    assert "far fewer classes" in found.vetoes["collapsing"][0]
    assert "other names" in found.vetoes["swapped"][0]
    assert "held-out source" in found.vetoes["forgot"][0]
    assert "by chance" in found.vetoes["random"][0]
    # Each of them wins without its veto, by the scores alone.
    for score_name in ("entropy", "atc"):
        values = {name: row[score_name] for name, row in found.scores.items()}
        sign = 1 if SCORES[score_name][1] else -1
        assert max(values, key=lambda n: sign * values[n]) not in ("good", "weak")


def uneven() -> tuple[Site, dict[str, ScoreInputs], ScoreInputs]:
    """Return a 95/5 target, a right candidate, and a surer one that splits it evenly."""
    site = Site((0.95, 0.05), m=600)
    half = np.where(np.arange(600) % 2 == 0, site.y_t, 1)
    candidates = {"even": site.candidate(6.0, half), "right": site.candidate(3.0)}
    return site, candidates, site.candidate(2.0)


def test_even_split_of_an_uneven_target_is_not_rewarded():
    _, candidates, reference = uneven()
    for name in ("im", "bnm"):
        values = {c: score(name, inputs) for c, inputs in candidates.items()}
        assert values["even"] > values["right"]  # the trap
    prior = np.array([0.95, 0.05])
    interval = {"prior_low": prior - 0.04, "prior_high": prior + 0.04}
    found = select(candidates, reference, kind="label", **interval)
    assert found.chosen == "right"
    assert "estimated prior" in found.vetoes["even"][0]
    told = {n: replace(inputs, target_prior=prior) for n, inputs in candidates.items()}
    assert score("im", told["right"]) > score("im", told["even"])


def test_scores_of_even_splits_count_only_where_frequencies_are_the_sources():
    assert score_weights("covariate", False)["bnm"] == 0.5
    for kind in ("label", "both", "unclear", None):
        weights = score_weights(kind, False)
        assert weights["bnm"] == weights["im"] == 0.0
        assert score_weights(kind, True)["im"] == 1.0
        trained = score_weights(kind, True, raises_confidence=True)
        assert {name for name, weight in trained.items() if weight} == {"iwcv"}


def test_nothing_is_chosen_where_every_candidate_is_vetoed():
    site = Site((0.5, 0.5))
    found = select({"a": site.candidate(9.0, 1 - site.y_t)}, site.candidate(3.0))
    assert found.chosen is None and found.order == () and list(found.vetoes) == ["a"]
    # A reference at chance identifies no class, so no candidate can be chosen.
    blind = site.candidate(9.0, np.random.default_rng(0).integers(0, 2, 300))
    assert select({"a": site.candidate(3.0)}, blind).chosen is None


def test_ties_fall_to_the_source_and_then_to_the_order():
    site = Site((0.5, 0.5))
    reference = site.candidate(3.0)
    found = select({"first": reference, "second": reference}, reference)
    assert found.order == ("first", "second")
    assert json.loads(json.dumps(found.to_json()))["scores"]["first"]["iwcv"] is None


def test_weighted_median_is_that_of_repeated_values():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values, weights = rng.integers(1, 9, 7).astype(float), rng.integers(1, 4, 7).astype(float)
        assert _weighted_median(values, weights) == np.median(
            np.repeat(values, weights.astype(int))
        )
