"""The conformance suite finds the fault that is planted in a method, and none in a good one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import conformance_faults as faults
from daptkit.errors import UsageError
from daptkit.method import Method
from daptkit.testing import (
    check_names,
    known_shift,
    method_checks,
    parametrize_with_checks,
    run_checks,
)
from daptkit.testing.case import CheckFailed, MethodCase, NotApplicable
from daptkit.testing.spec_checks import torch_free_import

SOURCE_FREE = {"needs": frozenset({"target"})}
INPUTS = {"roles": frozenset({"inputs"}), "trains": "none"}
FEATURES = {"roles": frozenset({"features"}), "trains": "none"}
NORM = {"roles": frozenset({"norm"}), "trains": "none"}
BOTH = {"roles": frozenset({"features", "norm"}), "trains": "none"}
LABEL = {"roles": frozenset({"class_weights", "target_prior"}), "trains": "none"}

PLANTED: list[tuple[type[Method], str, str, dict[str, Any]]] = [
    (faults.IgnoresTarget, "target_changes_loss", "ignores them", {}),
    (faults.Chunks, "permutation_invariance", "depends on the order", {}),
    (faults.NoReversal, "closes_known_gap", "leaves a known gap open", {}),
    (faults.SoftmaxOfOne, "every_parameter_is_used", "exactly 0", {}),
    (faults.SoftmaxOfOne, "closes_known_gap", "leaves a known gap open", {}),
    (faults.Detached, "gradient_reaches_domains", "no gradient reaches the source", {}),
    (faults.HalfDetached, "gradient_reaches_domains", "no gradient reaches the target", {}),
    (faults.WrongAxis, "unequal_batches", "size of tensor", {}),
    (faults.InPlace, "inputs_untouched", "changed in place", {}),
    (faults.HardCodedDevice, "meta_device", "cpu", {}),
    (faults.StepsOptimiser, "training_is_the_hosts", "changes the method's parameters", {}),
    (faults.BackwardInside, "training_is_the_hosts", "runs a backward pass", {}),
    (faults.NaNOnCollapse, "degenerate_batches", "nan", {}),
    (faults.IgnoresWeights, "zero_weight_is_absence", "not honoured", {}),
    (faults.IgnoresWeights, "weights_move_loss", "same under any", {}),
    (faults.BatchNormInside, "zero_weight_is_absence", "not honoured", {}),
    (faults.SlotReplacing, "one_global_batch", "the gradient of 'gap'", {}),
    (faults.NoGather, "one_global_batch", "two processes find another 'gap'", {}),
    (faults.PerProcessWeights, "one_global_batch", "two processes find another", {}),
    (faults.Reads, "no_synchronisation", "would wait", {}),
    (faults.Reads, "meta_device", "", {}),
    (faults.OnePassVariance, "bfloat16", "nan", {}),
    (faults.UnbiasedSpread, "batch_of_one", "nan", {}),
    (faults.VectorLoss, "named_scalar_losses", "shape", {}),
    (faults.BadName, "named_scalar_losses", "'mean/gap'", {}),
    (faults.NoLoss, "named_scalar_losses", "says it trains 'all'", {}),
    (faults.FirstCounts, "permutation_invariance", "depends on the order", {}),
    (faults.HiddenAverage, "state_round_trip", "has to be a buffer", {}),
    (faults.HiddenAverage, "exact_resume", "a resumed run", {}),
    (faults.Unused, "every_parameter_is_used", "spare.weight", {}),
    (faults.DoubleGroup, "parameter_groups", "twice", {}),
    (faults.SourcePrior, "known_prior", "the target was drawn with 0.70, 0.20, 0.10", LABEL),
    (faults.ToneOfBatch, "aligned_images", "depends on others", INPUTS),
    (faults.ToneOfNothing, "aligned_images", "a single level: not finite", INPUTS),
    (faults.Darkens, "known_appearance", "the source's own are changed", INPUTS),
    (faults.DarkensInPlace, "known_appearance", "the source's own are changed", INPUTS),
    (faults.Paints, "known_appearance", "leaves a known change", INPUTS),
    (faults.OfTheRowsPassed, "aligned_features", "a row of the source depends", FEATURES),
    (faults.FittedInNoBuffer, "aligned_features", "in buffers", FEATURES),
    (faults.NoSpread, "aligned_features", "not finite (collapsed)", FEATURES),
    (faults.InPlaceRows, "aligned_features", "a row of the source depends", FEATURES),
    (faults.OfTheBottleneck, "aligned_features", "size of tensor", FEATURES),
    (faults.BatchesDetached, "aligned_batches", "no gradient reaches the source", FEATURES),
    (faults.NaNBatches, "aligned_batches", "are not finite", FEATURES),
    (faults.SourceBatches, "aligned_batches", "aligned batches leave a known gap", FEATURES),
    (faults.BatchesUnweighted, "aligned_batches", "not honoured", FEATURES),
    (faults.BatchesApart, "aligned_batches", "two processes", FEATURES),
    (faults.PriorsMove, "known_statistics", "counts by the class weights", FEATURES),
    (faults.SourceStatistics, "known_statistics", "aligned features leave a known gap", FEATURES),
    (faults.SourceStatistics, "known_statistics", "statistics leave a known gap", NORM),
    (faults.NegativeVariance, "known_statistics", "negative variance", NORM),
    (faults.AnotherOnceAsked, "known_statistics", "asked again of the same model", NORM),
    (faults.Lists, "known_statistics", "no pair of tensors", NORM),
    (faults.SourceInFit, "source_free", "without source images", SOURCE_FREE | FEATURES),
    (faults.AsksForSource, "source_free", "without source images", SOURCE_FREE),
    (faults.NeedsSourceBatch, "source_free", "NoneType", SOURCE_FREE),
    (faults.Means, "option_texts_and_bounds", "without bounds", {"options": faults.Boundless}),
    (faults.Means, "option_texts_and_bounds", "help text", {"options": faults.Unexplained}),
    (faults.Means, "option_texts_and_bounds", "no option 'weight'", {"options": faults.Weightless}),
    (faults.Means, "names_and_texts", "capitals", {"name": "Means"}),
    (faults.Means, "names_and_texts", "one sentence", {"summary": "means"}),
]


@pytest.mark.parametrize(
    ("factory", "check", "reason", "spec"),
    PLANTED,
    ids=[f"{factory.__name__}-{check}" for factory, check, *_ in PLANTED],
)
@pytest.mark.filterwarnings("ignore:std\\(\\)")  # what batches of one are warned of is the fault
def test_a_planted_fault_is_found(
    factory: type[Method], check: str, reason: str, spec: dict[str, Any]
) -> None:
    (found,) = [c for c in method_checks(faults.loaded(factory, **spec)) if c.name == check]
    (outcome,) = run_checks([found])
    assert outcome.status == "failed"
    assert reason in outcome.reason
    assert "\n" not in outcome.reason


def test_every_check_of_a_method_has_a_planted_fault() -> None:
    assert {check for _, check, *_ in PLANTED} | {"torch_free_import"} == set(check_names())


def test_an_import_of_torch_is_found() -> None:
    method = faults.loaded(faults.Means)
    with pytest.raises(CheckFailed, match="imports torch"):
        torch_free_import(MethodCase(loaded=method, module="daptkit.method"))
    torch_free_import(MethodCase(loaded=method, module="daptkit.plugin"))
    with pytest.raises(NotApplicable):
        torch_free_import(MethodCase(loaded=method))


@parametrize_with_checks(faults.loaded(faults.Means))
def test_means_conform(check: Any) -> None:
    check()


@parametrize_with_checks(faults.loaded(faults.Adversary))
def test_an_adversary_conforms(check: Any) -> None:
    check()


@parametrize_with_checks(faults.loaded(faults.Entropy, **SOURCE_FREE))
def test_a_source_free_method_conforms(check: Any) -> None:
    check()


@parametrize_with_checks(faults.loaded(faults.Tone, **INPUTS))
def test_an_alignment_of_images_conforms(check: Any) -> None:
    check()


@parametrize_with_checks(faults.loaded(faults.Standardised, **BOTH))
def test_an_alignment_of_features_conforms(check: Any) -> None:
    check()


ROLE_CHECKS = ("aligned_images", "known_appearance", "aligned_features", "aligned_batches")


@pytest.mark.parametrize(
    ("factory", "spec"),
    [
        (faults.TrainingNoise, INPUTS),
        (faults.RefusesOneLevel, INPUTS),
        (faults.Smooths, {**INPUTS, "corrects": frozenset({"sharpness"})}),
        (faults.RunningBatches, FEATURES),
        (faults.MeasuresByPasses, BOTH),
        (faults.TargetAlone, {**NORM, "needs": frozenset({"target"})}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_the_contract_allows_conforms(factory: type[Method], spec: dict[str, Any]) -> None:
    names = (*ROLE_CHECKS, "known_statistics")
    checks = [c for c in method_checks(faults.loaded(factory, **spec)) if c.name in names]
    assert not [outcome for outcome in run_checks(checks) if outcome.status == "failed"]


@parametrize_with_checks("coral")
def test_coral_conforms(check: Any) -> None:
    check()


@parametrize_with_checks("dann")
def test_dann_conforms(check: Any) -> None:
    check()


@parametrize_with_checks("cdan")
def test_cdan_conforms(check: Any) -> None:
    check()


@parametrize_with_checks("mmd")
def test_mmd_conforms(check: Any) -> None:
    check()


@parametrize_with_checks("jmmd")
def test_jmmd_conforms(check: Any) -> None:
    check()


@parametrize_with_checks("bbse")
def test_bbse_conforms(check: Any) -> None:
    check()


def test_expected_failures_need_a_true_name_and_a_reason() -> None:
    with pytest.raises(UsageError, match=r"no check 'batch_of_on'\. Did you mean 'batch_of_one'"):
        parametrize_with_checks("coral", expected_failed={"batch_of_on": "why"})
    with pytest.raises(UsageError, match="say why"):
        parametrize_with_checks("coral", expected_failed={"batch_of_one": " "})
    with pytest.raises(UsageError, match="no kind 'methods'"):
        parametrize_with_checks("coral", kind="methods")


def test_an_expected_failure_is_strict() -> None:
    marked = parametrize_with_checks("coral", expected_failed={"batch_of_one": "needs pairs"})
    marks = {p.id: p.marks for p in marked.args[1]}
    (mark,) = marks.pop("batch_of_one")
    assert (mark.name, mark.kwargs) == ("xfail", {"reason": "needs pairs", "strict": True})
    assert not any(marks.values())


def test_known_shifts_are_what_they_say() -> None:
    for kind in ("none", "move", "stretch", "label"):
        world = known_shift(kind, 600, 600)
        shares = torch.bincount(world.target_labels) / 600
        torch.testing.assert_close(shares, world.target_prior, atol=2e-3, rtol=0)
        gap = world.gap(world.target_features)
        assert (gap > 3) == (kind in ("move", "stretch")), kind
    world = known_shift("move")
    undone = world.target_features - 1.5
    undone[:, 0] += 3.0
    assert world.gap(undone) < 0.5
    assert world.accuracy(undone) > world.accuracy(world.target_features) + 0.1
    with pytest.raises(ValueError, match="unknown shift"):
        known_shift("covariate")
