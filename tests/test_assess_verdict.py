"""The verdict without target labels, in worlds where the truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from daptkit.assess.accuracy import Sample, sample_of
from daptkit.assess.accuracy.estimates import Draws, estimate_draws
from daptkit.assess.evidence import (
    VerdictLimits,
    count_differences,
    paired_differences,
    upheaval,
)
from daptkit.assess.paired import audit_difference, lost_balanced_accuracy
from daptkit.assess.verdict import Verdict, judge
from daptkit.errors import DataError, UsageError
from worlds import World


def change(sample: Sample, target: np.ndarray | None = None, source: np.ndarray | None = None):
    """Return the sample with other posteriors."""
    return sample_of(
        sample.source_posterior if source is None else source,
        sample.labels,
        sample.target_posterior if target is None else target,
        source_groups=sample.source_groups,
        target_groups=sample.target_groups,
    )


def sharp(posterior: np.ndarray, power: float = 4.0) -> np.ndarray:
    p = posterior**power
    return p / p.sum(1, keepdims=True)


@cache
def moved_pair() -> tuple[World, Sample, Sample, np.ndarray, np.ndarray]:
    """Return a covariate world, its twin, a model that undid the shift, and heads of both."""
    world = World("covariate", 8, n=900, offset=2.6)
    heads = [world.head(seed) for seed in range(4)]
    before = np.array([h.predict(world.target.x) for h in heads])
    after = np.array([h.predict(world.target.x - world.moved) for h in heads])
    return world, world.sample(), world.sample(move=1.0), before, after


def verdict_of(twin: Sample, adapted: Sample, **values) -> Verdict:
    return judge(twin, adapted, **{"kind": "covariate", "n_bootstrap": 200} | values)


def test_undoing_a_covariate_shift_helped():
    world, twin, adapted, before, after = moved_pair()
    assert world.truth(adapted)[0] > world.truth(twin)[0] + 0.05
    found = verdict_of(twin, adapted, twin_heads=before, adapted_heads=after)
    assert (found.verdict, found.deliver) == ("helped", "adapted")
    assert "rises" in found.reasons[0]
    assert found.differences["gde"]["low"] > 0
    # Without heads only confidence is left, which is not believed alone.
    assert verdict_of(twin, adapted).verdict == "no evidence"


def test_more_changes_than_the_twin_has_wrong_need_evidence():
    """Without heads nothing but confidence speaks for a change of a quarter of the answers."""
    _, twin, adapted, _, _ = moved_pair()
    found = verdict_of(twin, adapted)
    assert (found.verdict, found.deliver) == ("no evidence", "source-only")
    assert "change class" in found.reasons[-1] and found.changed > 0.15
    # The first images keep their class: so few changes may all be corrections.
    few = twin.target_posterior.copy()
    few[-90:] = adapted.target_posterior[-90:]
    found = verdict_of(twin, change(adapted, target=few))
    assert 0 < found.changed < 0.1
    assert (found.verdict, found.deliver) == ("no evidence", "adapted")


def test_upheaval_goes_by_the_lowest_estimate_that_is_asked():
    before = Draws({"atc": 0.9, "doc": 0.75, "prior_weighted_recall": 0.5, "gde": 0.1}, {})
    asked = ("atc", "doc", "gde")
    assert upheaval(before, 0.25, asked) == []
    assert (
        "26% of the target images change class, more than the 25%"
        in (upheaval(before, 0.26, asked)[0])
    )
    assert upheaval(before, 0.5, ("prior_weighted_recall",)) == []
    assert upheaval(before, 1.0, ("gde",)) == []


def test_the_same_change_backwards_hurt():
    _, adapted, twin, after, before = moved_pair()
    found = verdict_of(twin, adapted, twin_heads=before, adapted_heads=after)
    assert (found.verdict, found.deliver) == ("hurt", "source-only")
    assert "falls" in found.reasons[-1]


def test_equal_models_and_sure_ones_give_no_evidence():
    """Over-confidence alone raises every confidence estimate, and changes no prediction."""
    twin = moved_pair()[1]
    for adapted in (twin, change(twin, target=sharp(twin.target_posterior))):
        found = verdict_of(twin, adapted)
        assert (found.verdict, found.deliver) == ("no evidence", "adapted")
        assert found.changed == 0.0
        assert all(d["value"] == 0.0 for d in found.differences.values())


def test_confidence_does_not_count_for_methods_that_train_it():
    _, twin, adapted, before, after = moved_pair()
    heads = {"twin_heads": before, "adapted_heads": after}
    found = verdict_of(twin, adapted, raises_confidence=True, **heads)
    assert not set(found.counted) & {"atc", "atc_entropy", "doc"}
    # Agreement still speaks where it may speak alone, and not where it needs a second family.
    assert found.verdict == "helped"
    assert not any("not asked" in reason for reason in found.reasons)  # it decided nothing
    assert verdict_of(twin, adapted, kind="both", raises_confidence=True, **heads).verdict == (
        "no evidence"
    )


@pytest.mark.parametrize(("move", "otherwise"), [(0.05, "helped"), (-0.05, "hurt")])
def test_where_unasked_confidence_would_decide_the_reasons_say_so(move: float, otherwise: str):
    _, twin, adapted, before, after = moved_pair()
    drawn = estimate_draws(twin, target_heads=before, n_bootstrap=50)
    moved = Draws(
        {name: value + move for name, value in drawn.values.items()},
        {name: draws + move for name, draws in drawn.replicates.items()},
    )
    given = {"twin_heads": before, "adapted_heads": after, "drawn": (drawn, moved), "kind": "both"}
    assert verdict_of(twin, adapted, **given).verdict == otherwise
    found = verdict_of(twin, adapted, raises_confidence=True, **given)
    assert found.verdict == "no evidence"
    (why,) = (r for r in found.reasons if r.startswith("estimates by confidence were not asked"))
    assert why.endswith(f"with them the verdict would be: {otherwise}")


def test_collapse_hurt_unless_the_prior_allows_it():
    twin = moved_pair()[1]
    collapsed = np.full_like(twin.target_posterior, 0.01)
    collapsed[:, 2] = 0.98
    found = verdict_of(twin, change(twin, target=collapsed), classes=("a", "b", "rare"))
    assert (found.verdict, found.deliver) == ("hurt", "source-only")
    assert "nearly every target image rare" in found.reasons[0]
    allowed = verdict_of(
        twin,
        change(twin, target=collapsed),
        prior_low=np.zeros(3),
        prior_high=np.array([0.1, 0.1, 1.0]),
    )
    assert not any("nearly every" in reason for reason in allowed.reasons)


def test_forgetting_the_source_hurt():
    twin, adapted = moved_pair()[1:3]
    source = twin.source_posterior.copy()
    source[::2] = source[::2, ::-1]
    found = verdict_of(twin, change(adapted, source=source))
    assert found.verdict == "hurt" and "held-out source images" in found.reasons[0]
    assert found.source_loss["low"] > 0.1


def test_swapped_names_hurt_however_sure():
    twin, adapted = moved_pair()[1:3]
    swapped = sharp(adapted.target_posterior[:, [1, 0, 2]])
    found = verdict_of(twin, change(adapted, target=swapped))
    assert (found.verdict, found.deliver) == ("hurt", "source-only")
    assert "exchanges the names" in found.reasons[0]


@pytest.mark.parametrize("swap", [False, True])
def test_a_blind_twin_can_not_tell(swap):
    """Right names or swapped ones: the evidence is the same, so must the verdict be."""
    world, twin, adapted = moved_pair()[:3]
    rng = np.random.default_rng(0)
    blind = change(twin, target=twin.target_posterior[rng.permutation(len(twin.target_posterior))])
    target = adapted.target_posterior[:, [1, 0, 2]] if swap else adapted.target_posterior
    heads = rng.integers(0, 3, (4, len(world.target.y)))
    for evidence in ({"twin_heads": heads}, {"feature_gap": 1.4}):
        found = verdict_of(blind, change(adapted, target=target), **evidence)
        assert found.verdict == "can't know", evidence
        assert "audit set" in found.reasons[-1]
    assert (
        verdict_of(blind, change(adapted, target=target), feature_gap=0.1).verdict != "can't know"
    )


def test_confidence_down_to_chance_can_not_tell():
    twin, adapted = moved_pair()[1:3]
    flat = 0.9 / 3 + 0.1 * twin.target_posterior
    found = verdict_of(change(twin, target=flat), adapted)
    assert found.verdict == "can't know"
    assert "reaches down to chance" in found.reasons[0]


def test_a_twin_of_one_class_can_not_tell_and_is_called_that():
    twin, adapted = moved_pair()[1:3]
    one = np.full_like(twin.target_posterior, 0.02)
    one[:, 0] = 0.96
    found = verdict_of(change(twin, target=one), adapted)
    assert found.verdict == "can't know"
    assert "calls nearly every image of the target one class" in found.reasons[0]


def test_unstable_adapted_models_are_no_help():
    world, twin, adapted, before, after = moved_pair()
    assert verdict_of(twin, adapted, twin_heads=before, adapted_heads=after).verdict == "helped"
    strict = VerdictLimits(min_stability=0.99)
    found = verdict_of(twin, adapted, twin_heads=before, adapted_heads=after, limits=strict)
    assert found.verdict == "no evidence" and "nothing but chance" in found.reasons[0]
    luck = np.random.default_rng(0).integers(0, 3, (3, len(world.target.y)))
    found = verdict_of(twin, adapted, adapted_heads=luck)
    assert found.verdict == "no evidence" and "nothing but chance" in found.reasons[0]
    assert found.stability == pytest.approx(0.0, abs=0.1)


def test_frequencies_against_the_prior_are_no_help():
    _, twin, adapted, before, after = moved_pair()
    heads = {"twin_heads": before, "adapted_heads": after}
    q = np.array([0.05, 0.05, 0.9])  # the world's is 0.5, 0.3, 0.2
    found = verdict_of(twin, adapted, prior_low=q - 0.02, prior_high=q + 0.02, **heads)
    assert found.verdict == "no evidence" and "class frequencies" in found.reasons[0]
    q = np.array([0.5, 0.3, 0.2])
    fitting = verdict_of(twin, adapted, prior_low=q - 0.1, prior_high=q + 0.1, **heads)
    assert fitting.verdict == "helped" and fitting.beyond_prior == 0.0


def test_which_differences_are_asked_follows_from_the_diagnosis():
    up, flat = ({"value": v, "low": v - 0.05, "high": v + 0.05} for v in (0.1, 0.0))
    same = {"atc": up, "doc": up, "prior_weighted_recall": flat, "gde": flat}
    assert count_differences(same, "none", False).up == ("atc", "doc")
    # Confidence alone is not believed under any shift.
    for kind in ("covariate", "label", "both", "unclear", None):
        assert count_differences(same, kind, False).up == (), kind
    # Recall's assumption holds under label shift and fails under a shift of images.
    recall = {**same, "atc": flat, "doc": flat, "prior_weighted_recall": up}
    assert count_differences(recall, "label", False).up == ("prior_weighted_recall",)
    assert "prior_weighted_recall" not in count_differences(recall, "covariate", False).names
    # Agreement may speak alone of covariate shift; elsewhere it needs a second family.
    heads = {**same, "atc": flat, "doc": flat, "gde": up}
    assert count_differences(heads, "covariate", False).up == ("gde",)
    for kind in ("both", "unclear", None):
        assert count_differences(heads, kind, False).up == ()
        assert count_differences({**same, "gde": up}, kind, False).up == ("atc", "doc", "gde")
    down = {n: {"value": -0.1, "low": -0.2, "high": -0.05} for n in ("gde", "doc")}
    assert count_differences(down, None, False).down == ("doc", "gde")
    assert count_differences(down, None, True).down == ()


def test_differences_are_paired_and_bounded_by_what_changed():
    before = Draws({"doc": 0.6}, {"doc": np.array([0.5, 0.6, 0.7])})
    after = Draws({"doc": 0.65}, {"doc": np.array([0.55, 0.65, 0.75])})
    exact = paired_differences(before, after, 1.0)["doc"]
    assert list(exact.values()) == pytest.approx([0.05] * 3)  # unpaired ends would differ
    bounded = paired_differences(before, after, 0.02)["doc"]
    assert list(bounded.values()) == pytest.approx([0.02] * 3)


def test_target_labels_have_no_way_in():
    import inspect

    names = set(inspect.signature(judge).parameters)
    assert not {n for n in names if "label" in n or "truth" in n}
    assert set(Sample.__dataclass_fields__) & {"labels"}  # of the source, N of them
    world, twin = moved_pair()[:2]
    assert len(twin.labels) == len(world.held.y)


def test_other_images_or_kinds_are_refused():
    twin, adapted = moved_pair()[1:3]
    with pytest.raises(DataError, match="same images"):
        judge(twin, replace(adapted, labels=(adapted.labels + 1) % 3))
    with pytest.raises(DataError, match="same images"):
        judge(twin, replace(adapted, target_groups=adapted.target_groups * 0))
    with pytest.raises(UsageError, match="kind of shift"):
        verdict_of(twin, adapted, kind="moved")
    with pytest.raises(DataError, match="at least 2"):
        verdict_of(twin, adapted, twin_heads=np.zeros((1, len(twin.target_posterior))))


def test_json_is_plain():
    twin, adapted = moved_pair()[1:3]
    made = json.loads(json.dumps(verdict_of(twin, adapted, n_bootstrap=20).to_json()))
    assert made["verdict"] in ("helped", "no evidence", "hurt", "can't know")
    assert made["deliver"] in ("adapted", "source-only") and made["reasons"]
    assert '"accuracy"' not in json.dumps(made)


def test_audit_difference_by_loops():
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 3, 60), np.arange(60) // 3
    before = np.where(rng.random(60) < 0.6, y, 0)
    after = np.where(rng.random(60) < 0.8, y, 1)
    found = audit_difference(
        y,
        before,
        after,
        balanced_before=before,
        balanced_after=after,
        groups=groups,
        patients_known=True,
        n_bootstrap=100,
    )
    assert found["accuracy"]["value"] == pytest.approx((after == y).mean() - (before == y).mean())
    recalls = [((after == y)[y == k].mean() - (before == y)[y == k].mean()) for k in range(3)]
    assert found["balanced_accuracy"]["value"] == pytest.approx(sum(recalls) / 3)
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    lost = lost_balanced_accuracy(y, before, after, groups=groups, patients_known=True)
    assert found["balanced_accuracy"]["value"] == pytest.approx(-lost["value"])
    with pytest.raises(ValueError, match="no images"):
        none = np.empty(0, np.int64)
        audit_difference(
            none,
            none,
            none,
            balanced_before=none,
            balanced_after=none,
            groups=none,
            patients_known=False,
        )
