"""Estimates of accuracy without target labels, against plain loops and known worlds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import norm

from daptkit.assess.accuracy import estimate_accuracy, sample_of, sample_under_rule
from daptkit.assess.accuracy.agreement import (
    Agreement,
    aline_accuracy,
    chance_corrected,
    gde_accuracy,
    gde_balanced_accuracy,
)
from daptkit.assess.accuracy.atc import atc_accuracy, max_confidence, negative_entropy
from daptkit.assess.accuracy.doc import doc_accuracy
from daptkit.assess.accuracy.estimates import estimate_draws
from daptkit.assess.accuracy.notes import ASSUMPTIONS, KINDS, reliability
from daptkit.assess.accuracy.recall import class_recalls, mean_recall, prior_weighted_accuracy
from daptkit.errors import DataError, UsageError
from daptkit.report.reading.words import RELIABILITY
from daptkit.shift import fit_rule
from worlds import World

RNG = np.random.default_rng(0)


def posteriors(n: int, k: int = 3, seed: int = 0, scale: float = 1.5) -> np.ndarray:
    z = np.random.default_rng(seed).normal(size=(n, k)) * scale
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def repeated(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.repeat(values, counts.astype(int), axis=-1)


def test_scores_are_the_formulas():
    p = posteriors(50)
    for row, top, entropy in zip(p, max_confidence(p), negative_entropy(p), strict=True):
        assert top == max(row)
        assert entropy == pytest.approx(sum(v * math.log(v) for v in row))
    assert negative_entropy(np.array([[1.0, 0.0]])) == pytest.approx(0.0)


@pytest.mark.parametrize("wrong", [0, 1, 30, 99, 100])
def test_atc_threshold_has_the_source_error_below_it(wrong):
    s, t = RNG.random(100), RNG.random(37)
    right = np.zeros(100)
    right[RNG.permutation(100)[wrong:]] = 1
    threshold = sorted(s)[wrong] if wrong < 100 else math.inf
    loop = sum(1 for v in t if v >= threshold) / 37
    assert atc_accuracy(s, right, t, np.ones(100), np.ones(37)) == pytest.approx(loop, abs=1e-12)


def test_atc_with_ties_keeps_the_source_exact():
    """A threshold alone would say 0 or 1 here: every confidence is saturated."""
    s = np.ones(100)
    right = np.repeat([1.0, 0.0], [70, 30])
    assert atc_accuracy(s, right, np.ones(40), np.ones(100), np.ones(40)) == pytest.approx(0.7)
    mixed = np.round(RNG.random(200), 1)
    right = (RNG.random(200) < mixed).astype(float)
    ones = np.ones(200)
    assert atc_accuracy(mixed, right, mixed, ones, ones) == pytest.approx(right.mean())


def test_weights_are_repeated_rows():
    s, t = RNG.random(60), RNG.random(40)
    right = (RNG.random(60) < s).astype(float)
    ws, wt = RNG.integers(0, 4, 60).astype(float), RNG.integers(0, 3, 40).astype(float)
    rows = repeated(s, ws), repeated(right, ws), repeated(t, wt)
    ones = np.ones(len(rows[0])), np.ones(len(rows[2]))
    for function in (atc_accuracy, doc_accuracy):
        assert function(s, right, t, ws, wt) == pytest.approx(function(*rows, *ones), abs=1e-12)


def test_doc_is_the_formula_and_is_cut():
    s, t = RNG.uniform(0.5, 1, 80), RNG.uniform(0.3, 1, 70)
    right = (RNG.random(80) < 0.8).astype(float)
    loop = sum(right) / 80 - (sum(s) / 80 - sum(t) / 70)
    ones = np.ones(80), np.ones(70)
    assert doc_accuracy(s, right, t, *ones) == pytest.approx(loop)
    assert doc_accuracy(np.ones(80), np.zeros(80), np.full(70, 0.4), *ones) == 0.0


def test_prior_weighted_recall_is_the_formula():
    y, predicted = RNG.integers(0, 3, 90), RNG.integers(0, 3, 90)
    w = RNG.integers(0, 3, 90).astype(float)
    recalls = class_recalls(y, predicted, w, 4)
    for k in range(3):
        hits = [w[i] * (predicted[i] == k) for i in range(90) if y[i] == k]
        assert recalls[k] == pytest.approx(sum(hits) / sum(w[y == k]))
    assert np.isnan(recalls[3])
    q = np.array([0.2, 0.0, 0.8, 0.0])
    assert prior_weighted_accuracy(recalls, q) == pytest.approx(0.2 * recalls[0] + 0.8 * recalls[2])
    assert mean_recall(recalls, q) == pytest.approx((recalls[0] + recalls[2]) / 2)
    assert np.isnan(prior_weighted_accuracy(recalls, np.full(4, 0.25)))  # class 3 was never seen


def test_agreement_by_loops():
    heads, w = RNG.integers(0, 3, (4, 30)), RNG.integers(0, 3, 30).astype(float)
    agreement = Agreement.of(heads, 3)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    rates = [
        sum(w[n] * (heads[i, n] == heads[j, n]) for n in range(30)) / w.sum() for i, j in pairs
    ]
    assert gde_accuracy(agreement, w) == pytest.approx(sum(rates) / 6)
    recalls, expected = [], 0.0
    for k in range(3):
        both = sum(
            w[n] * (heads[i, n] == k) * (heads[j, n] == k) for i, j in pairs for n in range(30)
        )
        votes = sum(w[n] * (heads[i, n] == k) for i in range(4) for n in range(30))
        recalls.append((both / 6) / (votes / 4))
        expected += (votes / 4 / w.sum()) ** 2
    assert gde_balanced_accuracy(agreement, w) == pytest.approx(sum(recalls) / 3)
    kappa = (sum(rates) / 6 - expected) / (1 - expected)
    assert chance_corrected(agreement, w) == pytest.approx(kappa)


def test_heads_at_chance_and_equal_heads():
    noise = np.random.default_rng(5).integers(0, 3, (6, 3000))
    ones = np.ones(3000)
    assert chance_corrected(Agreement.of(noise, 3), ones) == pytest.approx(0.0, abs=0.02)
    same = Agreement.of(noise[[0, 0, 0]], 3)
    assert chance_corrected(same, ones) == pytest.approx(1.0)


def line_of_heads(slope: float) -> tuple[np.ndarray, ...]:
    """Return heads of unequal skill, (H, N) classes of two, errors independent, y = 0."""
    rng = np.random.default_rng(7)
    skill = norm.ppf([0.7, 0.78, 0.85, 0.9, 0.95])
    rates = norm.cdf(slope * skill)
    source = (rng.random((5, 40000)) > norm.cdf(skill)[:, None]).astype(np.int64)
    target = (rng.random((5, 40000)) > rates[:, None]).astype(np.int64)
    return source, target, rates


def test_aline_solves_its_equations():
    source, target, rates = line_of_heads(0.6)
    right = (source == 0).astype(float)
    ones = np.ones(40000)
    s, t = Agreement.of(source, 2), Agreement.of(target, 2)
    found = aline_accuracy(s, right, t, ones, ones)
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    x = norm.ppf([np.mean(source[i] == source[j]) for i, j in pairs])
    y = norm.ppf([np.mean(target[i] == target[j]) for i, j in pairs])
    slope = np.polyfit(x, y, 1)[0]
    accuracy = norm.ppf(right.mean(1))
    rows, wanted = [], []
    for (i, j), agree_s, agree_t in zip(pairs, x, y, strict=True):
        row = [0.0] * 5
        row[i] = row[j] = 0.5
        rows.append(row)
        wanted.append(agree_t + slope * (0.5 * (accuracy[i] + accuracy[j]) - agree_s))
    solved = np.linalg.pinv(np.array(rows)) @ np.array(wanted)
    assert found == pytest.approx(norm.cdf(solved).mean(), abs=1e-9)
    # Errors that do not depend on each other lie on a line of their own, yet it helps.
    assert abs(found - rates.mean()) < 0.6 * abs(right.mean() - rates.mean())


def test_aline_is_silent_where_there_is_no_line():
    source, target, _ = line_of_heads(0.6)
    right = (source == 0).astype(float)
    ones = np.ones(40000)

    def estimate(rows: list[int], target: np.ndarray) -> float:
        s, t = Agreement.of(source[rows], 2), Agreement.of(target[rows], 2)
        return aline_accuracy(s, right[rows], t, ones, ones)

    assert np.isnan(estimate([0, 1, 2], target))
    assert np.isnan(estimate([0, 1, 2, 3, 4], target[::-1]))  # falls where it should rise
    assert np.isnan(estimate([0, 0, 0, 0], target))  # heads of one skill have no slope


def test_intervals_resample_patients_of_both_domains():
    """Intervals by image, or of the target alone, would be too short."""
    base = World("none", 0, n=60).sample()
    rows, few = np.repeat(np.arange(60), 5), np.repeat(np.arange(60), 5)  # 5 images a patient

    def width(source_groups: np.ndarray | None, target_groups: np.ndarray | None) -> float:
        sample = sample_of(
            base.source_posterior[rows],
            base.labels[rows],
            base.target_posterior[rows],
            source_groups=source_groups,
            target_groups=target_groups,
        )
        found = {e.name: e for e in estimate_accuracy(sample, n_bootstrap=300)}
        low, high = (found["doc"].estimated_accuracy[end] for end in ("low", "high"))
        return high - low

    by_image, by_patient = width(None, None), width(few, few)
    assert by_patient / by_image == pytest.approx(np.sqrt(5), rel=0.2)
    assert by_image * 1.1 < width(few, None) < by_patient
    assert by_image * 1.1 < width(None, few) < by_patient


def test_draws_of_two_models_are_paired():
    sample = World("none", 1, n=120).sample()
    one, other = (estimate_draws(sample, n_bootstrap=20, seed=4) for _ in range(2))
    for name, replicates in one.replicates.items():
        assert (replicates == other.replicates[name]).all(), name
    again = estimate_draws(sample, n_bootstrap=20, seed=5)
    assert (again.replicates["doc"] != one.replicates["doc"]).any()


@pytest.mark.parametrize("kind", ["none", "label"])
def test_prior_weighted_recall_is_right_under_label_shift(kind):
    world = World(kind, 3, n=3000)
    sample = world.sample()
    found = {e.name: e for e in estimate_accuracy(sample, kind=kind, n_bootstrap=0)}
    estimate = found["prior_weighted_recall"]
    accuracy, balanced = world.truth(sample)
    assert estimate.estimated_accuracy["value"] == pytest.approx(accuracy, abs=0.025)
    assert estimate.estimated_balanced_accuracy["value"] == pytest.approx(balanced, abs=0.025)
    assert estimate.reliability == "holds"
    if kind == "label":  # planted: the source's own accuracy is another one
        source = (sample.source_posterior.argmax(1) == sample.labels).mean()
        assert abs(source - accuracy) > 0.04


def test_every_estimate_is_right_without_shift():
    world = World("none", 2, n=3000)
    sample = world.sample()
    heads = [world.head(seed) for seed in range(4)]
    found = estimate_accuracy(
        sample,
        kind="none",
        source_heads=[h.predict(world.held.x) for h in heads],
        target_heads=[h.predict(world.target.x) for h in heads],
        n_bootstrap=0,
    )
    truth = world.truth(sample)[0]
    confident = [e for e in found if e.name not in ("gde", "aline")]
    assert len(confident) == 4
    for e in confident:
        assert e.estimated_accuracy["value"] == pytest.approx(truth, abs=0.03), e.name


def test_heads_that_agree_more_than_they_are_right_are_told():
    """The equality can be checked at the source; where it fails there it is not believed."""
    world = World("none", 2, n=900)
    heads = [world.head(seed) for seed in range(4)]
    alike = {
        "source_heads": [h.predict(world.held.x) for h in heads],
        "target_heads": [h.predict(world.target.x) for h in heads],
    }
    found = {e.name: e for e in estimate_accuracy(world.sample(), kind="none", **alike)}
    assert found["gde"].reliability == "fails"
    assert "more often than they are right" in found["gde"].note
    truth = np.mean([(h == world.target.y).mean() for h in alike["target_heads"]])
    assert found["gde"].estimated_accuracy["value"] > truth + 0.03
    alone = estimate_accuracy(world.sample(), kind="none", target_heads=alike["target_heads"])
    assert {e.name: e.reliability for e in alone}["gde"] == "indicative"  # nothing to check by


def test_agreement_of_heads_has_no_interval_and_is_said_to_be_rather_too_high():
    """Its sampling error is small beside its distance from the heads' accuracy."""
    over = []
    for seed in range(5):
        world = World("none", seed, n=300)
        heads = [world.head(i) for i in range(5)]
        on_target = np.array([h.predict(world.target.x) for h in heads])
        drawn = estimate_draws(world.sample(), target_heads=on_target, n_bootstrap=20)
        (found,) = [
            e
            for e in estimate_accuracy(world.sample(), kind="none", drawn=drawn)
            if e.name == "gde"
        ]
        for estimate in (found.estimated_accuracy, found.estimated_balanced_accuracy):
            assert estimate["value"] > 0.5 and estimate["low"] is estimate["high"] is None
        assert np.ptp(drawn.replicates["gde"]) > 0  # differences of two models keep theirs
        over.append(found.estimated_accuracy["value"] - (on_target == world.target.y).mean())
    assert min(over) > 0.0 and np.mean(over) > 0.02
    assert found.reliability == "indicative" and "more likely too high" in found.note


def test_few_patients_could_hide_a_shift_so_nothing_holds_among_them():
    level = {
        n: {e.name: e for e in estimate_accuracy(World("none", 2, n=n).sample(), kind="none")}
        for n in (90, 3000)
    }
    few, many = level[90]["atc"], level[3000]["atc"]
    half = (few.estimated_accuracy["high"] - few.estimated_accuracy["low"]) / 2
    assert half > 0.05 and few.reliability == "indicative"
    assert f"a drop of {round(100 * half * 2.8 / 1.96)} points could go unseen" in few.note
    assert many.reliability == "holds" and "can still be off" in many.note
    for kind in ("none", "label"):
        p = posteriors(40)
        one = sample_of(p, np.arange(40) % p.shape[1], p, source_groups=np.zeros(40))
        found = {e.name: e for e in estimate_accuracy(one, kind=kind)}["prior_weighted_recall"]
        assert found.reliability == "indicative" and "no shift of any size" in found.note
    covariate = estimate_accuracy(World("none", 2, n=90).sample(), kind="covariate")
    assert {e.name: e.note for e in covariate}["atc"] == reliability("atc", "covariate")[1]


def test_no_word_for_an_estimate_promises_that_it_is_right():
    assert RELIABILITY["holds"] == "not contradicted"
    notes = [note for a in ASSUMPTIONS.values() for _, note in a.under.values()]
    assert not any("should" in text for text in [*RELIABILITY.values(), *notes])


def test_label_shift_rule_uses_the_targets_decisions():
    """Recalls of the source's own decisions would be those of another classifier."""
    rng = np.random.default_rng(0)
    z_s, z_t = rng.normal(size=(200, 3)) * 2, rng.normal(size=(150, 3)) * 2
    y = z_s.argmax(1)
    rule = fit_rule(z_s, y, None, [0.05, 0.05, 0.9], "map", "abc")
    sample = sample_under_rule(rule, z_s, y, z_t)
    assert (sample.source_decisions == rule.predict(z_s, "target", decide="map")).all()
    assert (sample.source_decisions != sample.source_posterior.argmax(1)).any()
    assert sample.target_posterior == pytest.approx(rule.posterior(z_t))
    assert sample.source_posterior == pytest.approx(rule.posterior(z_s, "source"))
    assert np.exp(rule.calibration.log_posterior(z_t)) == pytest.approx(sample.target_shared)


def test_one_patient_has_no_interval_and_certainty_is_widened():
    p = np.tile([0.999, 0.001], (40, 1))
    one = sample_of(p, np.zeros(40, int), p, source_groups=np.zeros(40))
    for e in estimate_accuracy(one, n_bootstrap=20):
        assert e.estimated_accuracy["low"] is None
    sure = {e.name: e for e in estimate_accuracy(sample_of(p, np.zeros(40, int), p))}
    assert sure["atc"].estimated_accuracy["value"] == 1.0
    assert sure["atc"].estimated_accuracy["low"] == pytest.approx(0.025 ** (1 / 40))


def test_json_never_calls_it_the_accuracy():
    sample = World("none", 0, n=90).sample()
    found = estimate_accuracy(sample, kind="covariate", n_bootstrap=10)
    text = json.dumps([e.to_json() for e in found])
    assert '"accuracy"' not in text and "estimated_accuracy" in text
    for e in found:
        assert e.assumption and e.note and e.reference
        assert (e.estimated_balanced_accuracy is None) == (e.name != "prior_weighted_recall")


def test_notes_follow_the_diagnosis():
    for name in ASSUMPTIONS:
        levels = {kind: reliability(name, kind)[0] for kind in KINDS}
        assert levels["none"] == ("indicative" if name == "gde" else "holds")
        assert levels["unclear"] == reliability(name, None)[0] == "unknown"
    assert reliability("prior_weighted_recall", "covariate")[0] == "fails"
    assert reliability("atc", "label")[0] == "doubtful"
    with pytest.raises(UsageError, match="Did you mean 'label'"):
        reliability("atc", "lable")


def test_bad_arrays_are_data_errors():
    p, y = posteriors(20), np.zeros(20, int)
    with pytest.raises(DataError, match="sum to 1"):
        sample_of(2 * p, y, p)
    with pytest.raises(DataError, match="classes"):
        sample_of(p, y, posteriors(20, k=4))
    with pytest.raises(DataError, match="NaN"):
        sample_of(p, y, np.full((3, 3), np.nan))
    with pytest.raises(DataError, match="at least 2"):
        estimate_accuracy(sample_of(p, y, p), target_heads=np.zeros((1, 20)))
    with pytest.raises(DataError, match="shape"):
        estimate_accuracy(sample_of(p, y, p), target_heads=np.zeros((2, 19)))
    with pytest.raises(DataError, match="outside"):
        estimate_accuracy(sample_of(p, y, p), target_heads=np.full((2, 20), 3))
    with pytest.raises(DataError, match="3 heads on the source"):
        estimate_accuracy(
            sample_of(p, y, p), source_heads=np.zeros((3, 20)), target_heads=np.zeros((2, 20))
        )
