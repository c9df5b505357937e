"""The diagnosis: right answers in worlds of known shift, its sentences, audit, concept, advice."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from daptkit.errors import DataError
from daptkit.host import load_methods, parse_method
from daptkit.shift import (
    ShiftTest,
    audit_size,
    concept_test,
    diagnose_shift,
    divergences,
    recommend_methods,
)
from daptkit.shift.audit import intraclass_correlation
from daptkit.shift.calibration import search
from daptkit.shift.movedprior import _Mixture, moved_prior_test, some_patients
from daptkit.shift.verdict import any_shift_p, caveats, kind_of_shift
from shift_worlds import (
    SHIFTED,
    WORLDS,
    answered,
    diagnosed,
    gaussian_pair,
    gaussian_site,
    moved_pair,
)


def made(p, note="", patients=100):
    return ShiftTest(
        statistic=1.0, p=p, resamples=999, source_images=300, target_images=300,
        source_patients=patients, target_patients=patients, note=note,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found():
    """One diagnosis of each world."""
    return {world: diagnosed(*gaussian_pair(world, 3), permutations=199) for world in WORLDS}


def test_each_world_gets_its_answer(found):
    assert {world: d.kind for world, d in found.items()} == {world: world for world in WORLDS}


def test_effect_sizes_are_those_of_the_worlds(found):
    label, covariate = found["label"], found["covariate"]
    assert label.divergences["mmd2"] > 5 * abs(label.divergences["mmd2_weighted"])
    assert covariate.divergences["mmd2_weighted"] > 0.5 * covariate.divergences["mmd2"] > 0
    q = label.target_prior
    assert label.prior_change == pytest.approx(0.5 * np.abs(q.estimate - label.source_prior).sum())
    assert 0.15 < label.prior_change < 0.45 and covariate.prior_change < 0.15
    assert (q.low <= SHIFTED).sum() >= 2 and (q.high >= SHIFTED).sum() >= 2


def test_diagnosis_is_plain_and_repeatable(found):
    source, target = gaussian_pair("both", 3)
    again = diagnosed(source, target, permutations=199, seed=0)
    text = json.dumps(again.to_json(), allow_nan=False)
    assert text == json.dumps(found["both"].to_json(), allow_nan=False)
    data = json.loads(text)
    assert data["kind"] == "both" and data["tests"]["residual"]["p"] <= 0.05
    assert "5%" in data["level"] and data["p"] == again.p


def test_patients_matter():
    """Twelve images of each patient: no shift, and found only where patients are not given."""
    rng = np.random.default_rng(0)
    source, target = (gaussian_site(rng, 40, images=(12, 12), within=0.9) for _ in range(2))
    assert diagnosed(source, target, permutations=99).kind == "none"
    blind = diagnose_shift(source.x, source.logits, source.y, target.x, target.logits,
                           permutations=99)  # fmt: skip
    assert blind.kind != "none"
    assert any("patient ids" in c for c in blind.caveats)


def test_target_labels_are_no_argument_and_stages_and_statistics_are_reported():
    source, target = gaussian_pair("none", 0, patients=30)
    stage = (source.x[:, :3], target.x[:, :3] + 3.0)
    values = {"noise": source.x[:, 5], "maker": ["A"] * len(source.x)}
    others = {"noise": target.x[:, 5] + 9.0, "maker": ["B"] * len(target.x)}
    d = diagnosed(source, target, permutations=19, stages={"early": stage},
                  source_statistics=values, target_statistics=others)  # fmt: skip
    groups = {"source_groups": source.groups, "target_groups": target.groups}
    assert d.stages["early"] == divergences(*stage, **groups)
    assert {v.name for v in d.appearance} == {"noise", "maker"}
    assert all(v.p_adjusted < 0.001 for v in d.appearance)
    assert any("With 30 patients" in c for c in d.caveats)


@pytest.mark.parametrize(
    ("a", "b", "c", "kind"),
    [
        (0.5, 0.5, 0.5, "none"),
        (0.03, 0.5, 0.5, "none"),  # alone above .05 / 3
        (0.04, 0.02, 0.02, "none"),
        (0.001, 0.5, 0.5, "unclear"),
        (0.001, 0.04, 0.5, "label"),
        (0.001, 0.5, 0.04, "covariate"),
        (0.5, 0.001, 0.04, "both"),
        (0.5, 0.5, 0.001, "covariate"),
        (0.001, math.nan, 0.001, "unclear"),
        (0.001, 0.001, math.nan, "unclear"),
        (math.nan, 0.001, 0.001, "unclear"),
    ],
)
def test_tree(a, b, c, kind):
    tests = [made(p, "no reason" if math.isnan(p) else "") for p in (a, b, c)]
    answer, sentences = kind_of_shift(*tests, 0.05)
    assert answer == kind
    assert all(s.endswith(".") for s in sentences)
    if any(not t.tested for t in tests):
        assert any("no reason" in s for s in sentences)


@pytest.mark.parametrize(
    ("p", "kind", "said"),
    [(0.01, "both", "does not explain"), (0.3, "covariate", "may be all"), (math.nan, "both", "")],
)
def test_beside_a_residual_the_prior_is_asked_for_again(p, kind, said):
    answer, sentences = kind_of_shift(made(0.001), made(0.001), made(0.001), 0.05, made(p))
    assert answer == kind and said in sentences[-1]
    # Without a residual nothing has moved, and the first answer stands.
    assert kind_of_shift(made(0.001), made(0.001), made(0.5), 0.05, made(p))[0] == "label"


def test_p_of_any_shift_is_bonferronis():
    assert any_shift_p(made(0.2), made(0.01), made(0.5)) == pytest.approx(0.03)
    assert any_shift_p(made(0.2), made(math.nan), made(0.5)) == pytest.approx(0.4)
    assert math.isnan(any_shift_p(made(math.nan)))


def test_images_that_move_to_another_class_are_no_change_of_frequencies():
    """The mean prediction changes in both worlds; frequencies in one of them."""
    both, covariate = (answered(*moved_pair(w, 4), 4, 99) for w in ("both", "covariate"))
    assert both.kind == "both" and covariate.kind == "covariate"
    assert max(test.p for a in (both, covariate) for test in (a.prior, a.residual)) <= 0.05


def test_mixture_finds_prior_and_offset_and_its_likelihood_grows():
    rng = np.random.default_rng(0)
    means = np.array([[3.0, 0.0], [-2.0, 1.0], [0.0, -3.0]])
    root = np.array([[1.0, 0.0], [0.6, 0.8]])
    y = rng.choice(3, 3000, p=[0.6, 0.3, 0.1])
    x = means[y] + [0.7, -0.4] + rng.normal(size=(3000, 2)) @ root.T
    start = _Mixture(np.full(3, 1 / 3), np.zeros(2), np.eye(2))
    ones = np.ones(3000)
    steps = [start.fitted(x, ones, means, n) for n in (0, 1, 5, 60)]
    found = steps[-1]
    np.testing.assert_allclose(found.prior, [0.6, 0.3, 0.1], atol=0.03)
    np.testing.assert_allclose(found.offset, [0.7, -0.4], atol=0.06)
    np.testing.assert_allclose(found.covariance, root @ root.T, atol=0.1)
    likelihoods = [m.likelihood(x, ones, means) for m in steps]
    assert likelihoods == sorted(likelihoods)

    def density(v, m):  # of Gaussians, by the formula
        inverse = np.linalg.inv(m.covariance)
        gaps = [v - mean - m.offset for mean in means]
        terms = [q * math.exp(-0.5 * g @ inverse @ g) for q, g in zip(m.prior, gaps, strict=True)]
        return sum(terms) / math.sqrt(np.linalg.det(m.covariance))

    wanted = np.mean([math.log(density(v, found)) for v in x[:50]])
    assert found.likelihood(x[:50], np.ones(50), means) == pytest.approx(wanted)
    twice = start.fitted(np.vstack([x[:40], x[:20]]), np.ones(60), means, 3)
    weighted = start.fitted(x[:40], np.repeat([2.0, 1.0], 20), means, 3)
    np.testing.assert_allclose(weighted.prior, twice.prior)
    np.testing.assert_allclose(weighted.covariance, twice.covariance)


def test_far_images_do_not_vanish_from_the_mixture():
    """A row so far away that every density is 0 in float64 still counts."""
    x = np.vstack([np.random.default_rng(0).normal(size=(50, 1)), [[1e4]]])
    found = _Mixture(np.array([0.5, 0.5]), np.zeros(1), np.eye(1))
    again = found.fitted(x, np.ones(51), np.array([[-1.0], [1.0]]), 1)
    assert again.prior.sum() == pytest.approx(1.0) and np.isfinite(again.covariance).all()
    assert again.offset[0] > 100


def test_moved_prior_test_refuses_what_it_cannot_test():
    s, t = gaussian_pair("none", 0, patients=30)
    one = moved_prior_test(s.logits, np.zeros(len(s.y), int), t.logits)
    assert not one.tested and "one class" in one.note
    few = moved_prior_test(s.logits[:9], s.y[:9], t.logits)
    assert "fewer than 15" in few.note
    rows = some_patients(np.repeat(np.arange(100), 3), 100, np.random.default_rng(0))
    assert len(rows) == 99 and set(np.bincount(rows // 3)) <= {0, 3}


def test_caveats_name_what_limits_the_answer():
    tests = [made(0.001, patients=20), made(0.001), made(0.5, "3 classes were left out")]
    blind = SimpleNamespace(trusted=False, reasons=("the rarest class has 2 images",))
    said = " ".join(caveats("label", tests, blind, 0.1, False))
    for part in ("patient ids", "With 20 patients", "small (proxy", "rarest class", "left out"):
        assert part in said
    assert caveats("label", [made(0.001)] * 3, None, 1.0, True) == (
        "That images of one class look alike at both sites was not refuted, which is not proof.",
    )
    assert "does not show" in caveats("none", [made(0.5)] * 3, None, 0.1, True)[0]


def test_bad_input_is_refused():
    s, t = gaussian_pair("none", 0, patients=20)
    with pytest.raises(DataError, match="level"):
        diagnosed(s, t, alpha=0.7)
    with pytest.raises(DataError, match="rows of features"):
        diagnose_shift(s.x[:-1], s.logits, s.y, t.x, t.logits)
    few = diagnose_shift(s.x[:10], s.logits[:10], s.y[:10], t.x, t.logits, permutations=9)
    assert few.kind == "unclear" and "fewer than 15" in few.reasons[0]
    json.dumps(few.to_json(), allow_nan=False)


def test_audit_is_the_binomial_times_the_design_effect():
    right = np.repeat([1.0, 1.0, 1.0, 0.0], 25)  # 75%, one image a patient
    found = audit_size(right)
    assert found.patients == math.ceil(1.959964**2 * 0.65 * 0.35 / 0.05**2) == found.images
    # Patients of 1, 2 and 3 images, all right or all wrong together: D = (1 + 4 + 9) / 6.
    groups = np.repeat(np.arange(50), 2)
    together = np.repeat(np.arange(50) % 4 > 0, 2).astype(float)
    target = np.repeat(np.arange(3), [1, 2, 3])
    several = audit_size(together, groups, target)
    assert several.correlation == pytest.approx(1.0)
    assert several.design_effect == pytest.approx(14 / 6)
    a = together.mean() - 0.1
    needed = 1.959964**2 * a * (1 - a) / 0.05**2 * 14 / 6
    assert several.patients == math.ceil(needed / 2)
    assert audit_size(right, None, target).correlation == 1.0  # unknown: the worst
    assert audit_size(right, margin=0.1).patients < found.patients / 3
    with pytest.raises(DataError):
        audit_size([])


def test_intraclass_correlation_is_anovas():
    rng = np.random.default_rng(0)
    g = np.repeat(np.arange(400), 4)
    values = np.sqrt(0.3) * rng.normal(size=400)[g] + np.sqrt(0.7) * rng.normal(size=1600)
    assert intraclass_correlation(values, g) == pytest.approx(0.3, abs=0.05)
    assert math.isnan(intraclass_correlation(values, None))
    assert math.isnan(intraclass_correlation(np.ones(6), np.array([0, 0, 1, 1, 2, 2])))


def labelled(seed, patients=40, swapped=0.0, prior=SHIFTED):
    rng = np.random.default_rng(seed)
    source, target = gaussian_site(rng, 150), gaussian_site(rng, patients, prior)
    y = target.y.copy()
    y[(rng.random(patients) < swapped)[target.groups] & (y == 2)] = 1
    return concept_test(
        1.5 * source.logits, source.y, 1.5 * target.logits, y, target_prior=prior,
        source_groups=source.groups, target_groups=target.groups, bootstraps=20, draws=99,
        seed=seed,
    )  # fmt: skip


def test_another_meaning_of_a_label_is_found_and_label_shift_alone_is_not():
    same = [labelled(seed) for seed in range(4)]
    assert sum(c.p <= 0.05 for c in same) <= 1
    swapped = [labelled(seed, swapped=0.5) for seed in range(2)]
    assert all(c.p <= 0.05 for c in swapped)
    for c in swapped:
        assert c.offsets[1][0] > 0 > c.offsets[2][0]
        assert c.disagreement[0] == pytest.approx(c.error - c.expected_error)
        assert c.disagreement[1] > 0.05 and c.slope[0] < 1
        assert sum(o[0] for o in c.offsets) == pytest.approx(0.0, abs=1e-9)
    json.dumps(swapped[0].to_json(), allow_nan=False)


def two_gaussians(rng, n, prior):
    """Logits and labels of two classes at -1 and 1; the logits are right for equal priors."""
    y = (rng.random(n) < prior).astype(int)
    return np.column_stack([np.zeros(n), 2.0 * (2.0 * y - 1.0 + rng.normal(size=n))]), y


def test_label_shift_has_to_be_told():
    """Under the source's prior the offsets are those of the prior, and the test rejects."""
    rng = np.random.default_rng(0)
    source, target = two_gaussians(rng, 400, 0.5), two_gaussians(rng, 200, 0.15)
    few = {"bootstraps": 50, "draws": 199}
    blind = concept_test(*source, *target, **few)
    told = concept_test(*source, *target, target_prior=[0.85, 0.15], **few)
    assert blind.p_calibration <= 0.02
    log_odds = blind.offsets[1][0] - blind.offsets[0][0]
    assert log_odds == pytest.approx(math.log(0.15 / 0.85), abs=0.6)
    assert told.p_calibration > 0.05 and told.offsets[0][1] <= 0.0 <= told.offsets[0][2]
    assert told.slope[1] <= 1.0 <= told.slope[2]


def test_scores_are_the_formulas():
    rng = np.random.default_rng(1)
    s, t = gaussian_site(rng, 60), gaussian_site(rng, 20)
    c = concept_test(s.logits, s.y, t.logits, t.y, bootstraps=2, draws=9)
    assert c.error == pytest.approx(np.mean(t.logits.argmax(1) != t.y), abs=0.05)
    assert c.images == len(t.y) and c.patients == len(t.y)
    # The slope and offsets are the maximum of the penalised likelihood: no gradient is left.
    log_p = t.logits - np.log(np.exp(t.logits).sum(1, keepdims=True))
    scale, bias = search(log_p, t.y, np.ones(len(t.y)), True, with_scale=False)
    assert scale == 1.0
    p = np.exp(log_p + bias)
    p /= p.sum(1, keepdims=True)
    truth = np.eye(3)[t.y]
    np.testing.assert_allclose((p - truth).mean(0) + bias / len(t.y), 0.0, atol=1e-4)


def test_few_labelled_patients_are_not_tested():
    rng = np.random.default_rng(0)
    s, t = gaussian_site(rng, 60), gaussian_site(rng, 10)
    c = concept_test(s.logits, s.y, t.logits, t.y, target_groups=t.groups, bootstraps=5)
    assert math.isnan(c.p) and "fewer than 15" in c.note and c.patients == 10
    assert c.to_json()["p"] is None
    with pytest.raises(DataError, match="replicates"):
        concept_test(s.logits, s.y, t.logits, t.y, bootstraps=1)


ADDRESSES = {
    "align": frozenset({"covariate"}),
    "another": frozenset({"covariate"}),
    "weigh": frozenset({"label"}),
    "correct": frozenset({"label"}),
}
ROLES = {
    "weigh": frozenset({"class_weights", "target_prior"}),
    "correct": frozenset({"target_prior"}),
}


def advice(found, world, addresses=ADDRESSES, roles=ROLES, **options):
    return recommend_methods(found[world], addresses, roles, **options)


def test_advice_is_worked_out_from_what_methods_say_of_themselves(found):
    assert advice(found, "none").methods == "none"
    covariate = advice(found, "covariate")
    assert covariate.methods == "align" and covariate.alternatives == ("another",)
    assert advice(found, "label").methods == "correct"
    both = advice(found, "both")
    assert both.methods == "align+weigh"  # only this owner of the prior weighs the alignment
    assert both.alternatives == ("another+weigh",)
    assert "weigh addresses label shift" in both.reason
    preferred = advice(found, "both", prefer=("another",))
    assert preferred.methods == "another+weigh"


def test_of_equals_those_with_fewer_declared_risks_come_first(found):
    risks = {"align": frozenset({"adversarial"})}
    first = advice(found, "covariate", risks=risks)
    assert first.methods == "another" and first.alternatives == ("align",)
    assert "fewer declared risks" in first.reason
    both = advice(found, "both", risks=risks)
    assert both.methods == "another+weigh" and both.alternatives == ("align+weigh",)
    two = {**risks, "another": frozenset({"adversarial", "own_predictions"})}
    assert advice(found, "covariate", risks=two).methods == "align"
    assert advice(found, "covariate", risks=risks, prefer=("align",)).methods == "align"


def test_one_method_for_both_is_enough(found):
    addresses = {**ADDRESSES, "all": frozenset({"covariate", "label"})}
    roles = {**ROLES, "all": frozenset({"class_weights"})}
    assert advice(found, "both", addresses, roles).methods == "all"
    assert advice(found, "covariate", addresses, roles).methods == "align"  # nothing beyond


def test_no_method_fits(found):
    only = {"align": ADDRESSES["align"]}
    label = advice(found, "label", only, {})
    assert label.methods == "none" and "no installed method addresses label shift" in label.reason
    conflict = {**ROLES, "align": frozenset({"class_weights"})}
    alone = {n: ADDRESSES[n] for n in ("align", "weigh")}
    assert advice(found, "both", alone, conflict).methods == "none"
    unclear = dataclasses.replace(found["both"], kind="unclear", reasons=("Too few.",))
    assert recommend_methods(unclear, ADDRESSES).reason.endswith("Too few.")
    assert json.dumps(label.to_json())


def test_installed_methods_give_an_argument_that_the_host_takes(found):
    specs = [m.spec for m in load_methods(["bbse", "coral", "dann"])]
    addresses = {spec.name: spec.addresses for spec in specs}
    roles = {spec.name: spec.roles for spec in specs}
    assert parse_method(advice(found, "both", addresses, roles).methods) == ["coral", "bbse"]
    assert advice(found, "label", addresses, roles).methods == "bbse"
    assert advice(found, "covariate", addresses, roles, prefer=["dann"]).methods == "dann"
    assert parse_method(advice(found, "none", addresses, roles).methods) == []
    specs = [m.spec for m in load_methods(["bbse", "cdan", "coral", "dann", "jmmd", "mmd"])]
    addresses = {spec.name: spec.addresses for spec in specs}
    roles = {spec.name: spec.roles for spec in specs}
    risks = {spec.name: spec.risks for spec in specs}
    named = advice(found, "covariate", addresses, roles, risks=risks)
    assert (named.methods, *named.alternatives) == ("coral", "mmd", "dann", "jmmd", "cdan")
    named = advice(found, "both", addresses, roles, risks=risks)
    assert (named.methods, named.alternatives[-1]) == ("coral+bbse", "cdan+bbse")
    # No shipped loss rewards sure predictions; one that does has to say so.
    assert not any(spec.raises_confidence for spec in specs)
