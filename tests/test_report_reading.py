"""Sentences of the report in odd situations: none says more than its number shows."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest

import report_data
from daptkit.report.page import render
from daptkit.report.reading.domains import agreement, basis, closeness, margin, stage_sentences
from daptkit.report.reading.frequencies import estimate
from daptkit.report.reading.methods import method_reports
from daptkit.report.reading.short import what_was_done
from daptkit.report.reading.source import (
    calibration,
    calibration_choice,
    forgotten,
    from_scratch,
    task_kept,
)
from daptkit.report.reading.training import (
    panels,
    read_discriminator,
    read_validation_loss,
    selected,
    unfreezing,
)

MEASURES = ("proxy_a_distance", "mmd2", "knn_domain_accuracy")


@pytest.fixture
def report() -> dict[str, Any]:
    return copy.deepcopy(report_data.full_report())


def of_divergences(
    report: dict[str, Any], before: tuple[float, ...], after: tuple[float, ...], n: int = 2000
) -> dict[str, Any]:
    report["divergence"] = {
        "source-only": dict(zip(MEASURES, before, strict=True)),
        "adapted": dict(zip(MEASURES, after, strict=True)),
    }
    report["embedding"]["of"] = {"source": n, "target": n + 7}
    return report


def test_a_difference_that_chance_explains_is_not_a_change(report: dict[str, Any]) -> None:
    many = of_divergences(report, (1.6, 0.1, 0.9), (1.4, 0.1, 0.9))
    assert "closer together" in closeness(many)
    few = of_divergences(report, (1.6, 0.1, 0.9), (1.4, 0.1, 0.9), n=20)
    assert "closer" not in closeness(few)
    assert "chance in 20 images a site can explain" in closeness(few)
    assert "None of the three measures changed much." in agreement(few)
    # The error rates are 0.1 and 0.15, each counted on 40 images; A = 2 - 4 err.
    spread = math.sqrt(0.1 * 0.9 / 40 + 0.15 * 0.85 / 40)
    assert margin(1.6, 1.4, 20) == pytest.approx(4 * 1.96 * spread)


def test_measures_that_moved_are_named_where_the_proxy_a_distance_is_at_its_end(
    report: dict[str, Any],
) -> None:
    mixed = closeness(of_divergences(report, (2.0, 0.376, 1.0), (2.0, 0.0453, 0.885)))
    assert "about as well as before: proxy A-distance 2.00 before, 2.00 after" in mixed
    assert "MMD² fell from 0.376 to 0.0453 and k-NN domain accuracy fell from 1.00 to" in mixed
    still = closeness(of_divergences(report, (2.0, 0.376, 1.0), (2.0, 0.375, 1.0)))
    assert "about as well as before" in still and "MMD" not in still


def test_a_negative_mmd_is_not_a_change(report: dict[str, Any]) -> None:
    near = of_divergences(report, (0.4, -0.0012, 0.55), (0.4, -0.0011, 0.55))
    assert agreement(near) == "None of the three measures changed much."


def test_stages_of_few_images(report: dict[str, Any]) -> None:
    report["stages"]["shown"] = {"source": 20, "target": 30}
    report["stages"]["proxy_a_distance"] = {
        "source-only": [1.5, 1.4, 1.45, 1.4, 1.5, 1.5],
        "adapted": [1.5, 1.4, 1.45, 1.4, 1.5, 1.3],
    }
    where, change = stage_sentences(report)
    assert "about equally easy to tell apart" in where
    assert "chance in 20 images a site can explain" in change


def test_what_divergences_are_measured_on(report: dict[str, Any]) -> None:
    report["embedding"]["of"] = {"source": 240, "target": 3571}
    assert "240 source images kept out of training and 3,571 target images" in basis(report)
    report["embedding"]["of"]["source"] = 2700
    assert "all 2,700 source images, those trained on included" in basis(report)


def test_patients_of_validation_images_are_said(report: dict[str, Any]) -> None:
    assert "812 patients, those of validation images included" in what_was_done(report)


@pytest.mark.parametrize("values", [[0.93], [0.93, 0.6], [0.5, 0.5, 0.5]])
def test_few_values_of_a_discriminator_have_no_course(values: list[float]) -> None:
    said = read_discriminator(values)
    assert "Too few values were logged" in said
    assert "alignment" not in said and "learned" not in said


def test_a_discriminator_that_rose_between_was_not_near_chance_all_along() -> None:
    values = [0.55, 0.6, 0.7, 0.8, 0.85, 0.8, 0.7, 0.6, 0.55, 0.52]
    assert "all along" not in read_discriminator(values)


def test_validation_loss_of_short_runs() -> None:
    assert read_validation_loss([0.4]) == "0.400 after the only epoch."
    assert "overfitting" not in read_validation_loss([0.4, 0.3])
    rising = [0.6, None, 0.4, 0.5, 0.6]
    assert "Lowest after epoch 3" in read_validation_loss(rising)
    assert "a sign of overfitting" in read_validation_loss(rising)
    assert "or by what adapting costs" in read_validation_loss(rising, adapted=True)


def test_only_a_loss_of_domains_is_read_as_a_discriminators(report: dict[str, Any]) -> None:
    training = report["training"]["adapted"]
    training["losses"]["dann/entropy"] = training["losses"]["dann/domain"]
    made = {panel.key: panel.reading for panel in panels(report)}
    assert "discriminator" in made["dann/domain"]
    assert "discriminator" not in made["dann/entropy"]


def test_series_of_label_shift_are_said_in_words(report: dict[str, Any]) -> None:
    made = {panel.key: panel for panel in panels(report)}
    assert made["bbse/ess"].title == "bbse: effective sample size"
    assert "without class weights" in made["bbse/ess"].reading


def test_an_estimate_that_predictions_do_not_use(report: dict[str, Any]) -> None:
    report["prior"] |= dict.fromkeys(("target", "target_low", "target_high"))
    said = report["method_reports"]
    said["bbse"] = {"trusted": True, "prior": [0.2] * 5}
    assert "predictions do not use the estimate" in estimate(report)
    said["bbse"] = {"trusted": False, "prior": None, "estimate": [0.2] * 5}
    assert "does not trust the estimate" in estimate(report)
    said["bbse"] = {"trusted": False, "prior": None}
    assert "not estimated by a method" in estimate(report)


def test_an_estimate_says_what_its_interval_rests_on(report: dict[str, Any]) -> None:
    report["data"]["patients_known"] = {"source": True, "target": True}
    assert "resample whole patients" in estimate(report)
    report["data"]["patients_known"]["target"] = False
    assert "image-level" in estimate(report)
    report["prior"] |= {"target_low": None, "target_high": None}
    assert "image-level" not in estimate(report)


def test_an_estimate_without_interval_claims_none(report: dict[str, Any]) -> None:
    report["prior"] |= dict.fromkeys(("target_low", "target_high"))
    page, plots = render(report, {})
    drawn = next(plot for plot in plots if plot.name == "class-frequencies").svg
    assert "target, 95% interval" not in page
    assert b"95% interval" not in drawn and b"target estimate" in drawn


def test_lists_by_class_name_their_classes(report: dict[str, Any]) -> None:
    classes = report["data"]["classes"]
    shares = [0.1, 0.2, 0.3, 0.15, 0.25]
    report["method_reports"] = {
        "one": {"classes": classes, "source_prior": shares, "reasons": ["a", "b"]},
        "two": {"low": shares},
        "dann": {},
    }
    rows = method_reports(report)
    assert rows["one"] == [
        (
            "source frequencies",
            "basophil 0.100; eosinophil 0.200; lymphocyte 0.300; monocyte 0.150; neutrophil 0.250",
        ),
        ("reasons", "a, b"),
    ]
    assert rows["two"][0][1] == "0.1, 0.2, 0.3, 0.15, 0.25"
    assert "dann" not in rows


def test_a_loss_on_the_source_is_no_more_than_was_seen(report: dict[str, Any]) -> None:
    def with_scores(before: dict[str, Any], after: dict[str, Any]) -> str:
        pair = {"source-only": before, "adapted": after}
        return task_kept(
            report
            | {"source_validation": {m: {"n": 5, "balanced_accuracy": s} for m, s in pair.items()}}
        )

    unknown = {"value": 0.8, "low": None, "high": None}
    assert "how surely is not known from 5 images" in with_scores(unknown, unknown | {"value": 0.6})
    assert "5 images would not show" in with_scores(unknown, unknown)


@pytest.mark.parametrize(("n", "told"), [(5, False), (5000, True)])
def test_confidence_of_few_images_is_not_judged(report: dict[str, Any], n: int, told: bool) -> None:
    curve = {"ece": 0.1, "bins": [{"n": n, "confidence": 0.9, "accuracy": 0.8}]}
    report["calibration"]["adapted"] = {"uncalibrated": curve, "calibrated": curve}
    assert ("too sure" in calibration(report, "adapted")) is told


def test_the_chosen_calibration_is_named_with_its_figures(report: dict[str, Any]) -> None:
    said = calibration_choice(report, "adapted")
    assert said.startswith("The adapted model is calibrated by a temperature and a bias for each")
    assert "a temperature 0.431" in said and "a scale and a bias for each class 0.402" in said
    report["calibration"]["adapted"]["choice"] = {
        "kind": "temperature",
        "nll": {},
        "note": "one patient alone is held out",
    }
    said = calibration_choice(report, "adapted")
    assert (
        said == "The adapted model is calibrated by a temperature. One patient alone is held out."
    )
    del report["calibration"]["adapted"]["choice"]  # as in reports of before
    assert calibration_choice(report, "adapted") == ""


@pytest.mark.parametrize("k", [2, 40])
def test_one_class_predicted_of_few_and_many(k: int) -> None:
    classes = [f"class {i}" for i in range(k)]
    report = report_data.small_report(classes)
    only = dict.fromkeys(classes, 0.0) | {classes[1]: 1.0}
    report["predicted"] = dict.fromkeys(report["models"], only)
    never = [name for name in classes if name != classes[1]]
    report["collapse"] = {"fractions": only, "never": never, "collapsed": True}
    page, _ = render(report, {})
    assert "100.0% of the target images are predicted as" in page
    assert not re.search(r"\bhelped\b|\bNone\b|\bnan\b", page)


def test_a_very_long_run_stays_one_small_page(report: dict[str, Any]) -> None:
    for training in report["training"].values():
        n = 20_000
        training["step"] = list(range(n))
        training["lr"] = [0.01] * n
        for kind in ("losses", "logged"):
            for name in training[kind]:
                training[kind][name] = [0.5 + 0.3 * math.sin(i * i) for i in range(n)]
    page, _ = render(report, {})
    assert len(page) < 3_000_000


def test_gradual_unfreezing_is_told_and_drawn(report: dict[str, Any]) -> None:
    assert unfreezing(report) == ""
    report["run"]["finetune"] = "gradual"
    step = {"kind": "unfreeze", "step": 800, "epoch": 2, "stages": ["layer4"], "trained": 1}
    step |= {"of": 5, "source_val_loss": 0.5}
    stop = step | {"step": 1200, "epoch": 3, "stages": []}
    plain, _ = render(report, {})
    report["training"]["adapted"]["unfreeze"] = [step, stop]
    report["training"]["source-only"]["unfreeze"] = []
    told = unfreezing(report)
    assert "Source-only model: nothing of the backbone." in told
    assert "Adapted model: layer4 after epoch 2; stopped after epoch 3" in told
    made = {panel.key: panel.marks for panel in panels(report)}
    assert made["classification"] == {"source-only": [], "adapted": [800]}
    assert made["dann/domain"] == {"adapted": [800]}
    marked, _ = render(report, {})
    assert told in marked and "dotted lines" in told
    assert marked.count("base64") == plain.count("base64") and len(marked) > len(plain) + len(told)


@pytest.mark.parametrize(
    ("scratch", "loaded", "words"),
    [
        ((0.7, 0.65, 0.75), (0.8, 0.76, 0.84), "the loaded weights help at the source."),
        ((0.8, 0.76, 0.84), (0.7, 0.65, 0.75), "do harm (negative transfer)."),
        ((0.7, 0.6, 0.8), (0.8, 0.7, 0.9), "no clear difference."),
        ((0.7, None, None), (0.8, None, None), "no clear difference."),
        ((0.705, 0.7, 0.709), (0.715, 0.71, 0.72), "no clear difference."),
        ((None, None, None), (0.8, 0.7, 0.9), "could not be scored."),
    ],
)
def test_the_loaded_weights_against_random_ones(
    report: dict[str, Any], scratch: tuple[Any, ...], loaded: tuple[Any, ...], words: str
) -> None:
    assert from_scratch(report) == ""
    scores = report["source_validation"]["source-only"]
    ends = ("value", "low", "high")
    scores["balanced_accuracy"] = dict(zip(ends, loaded, strict=True))
    report["from_scratch"] = scores | {"balanced_accuracy": dict(zip(ends, scratch, strict=True))}
    assert from_scratch(report).endswith(words)
    report["prior"]["predicted_scratch"] = report["prior"]["predicted"]
    page, _ = render(report, {})
    assert from_scratch(report) in page and ">from scratch</th>" in page


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.031, 0.004, 0.059, "3.1 points of balanced accuracy (0.4 to 5.9; both models on the"),
        (0.031, 0.004, 0.059, "a loss that chance does not explain."),
        (0.01, -0.02, 0.04, "(−2.0 to 4.0; both models on the same resampled images)"),
        (0.01, -0.02, 0.04, ", which chance can explain."),
        (-0.03, -0.05, -0.01, "a gain that chance does not explain."),
        (-0.03, -0.05, 0.01, "Gained at the source: 3.0 points of balanced accuracy (−1.0 to 5.0;"),
        (0.03, None, None, "3.0 points of balanced accuracy, the difference of both models"),
    ],
)
def test_what_was_forgotten(
    report: dict[str, Any], value: float, low: float | None, high: float | None, words: str
) -> None:
    assert forgotten(report) == ""
    interval = "patient" if value == 0.031 else "image"
    lost = {"value": value, "low": low, "high": high, "n": 240, "interval": interval}
    report["forgotten"] = lost
    assert words in forgotten(report)
    page, _ = render(report, {})
    assert forgotten(report) in page


def test_the_epoch_that_was_taken_is_told_and_marked(report: dict[str, Any]) -> None:
    steps = report["training"]["adapted"]["epoch_step"]
    plain = {panel.key: panel.selected for panel in panels(report)}
    assert set(plain.values()) == {None}
    assert selected(report) == ""
    epochs = [{"epoch": n, "vetoes": ["collapsed"] if n == 2 else []} for n in (1, 2)]
    report["selection"] = {"rule": "snd", "epoch": 1, "of": 2, "why": "best snd (3)"} | {
        "epochs": epochs
    }
    text = selected(report)
    assert "epoch 1 of 2 by snd: best snd (3) (1 of 2 epochs vetoed)" in text
    assert "Right of the solid vertical line is training that was not used" in text
    marked = {panel.key: panel.selected for panel in panels(report) if "adapted" in panel.lines}
    assert set(marked.values()) == {steps[0]}
    page, _ = render(report, {})
    assert "best snd (3)" in page
    report["selection"]["epoch"] = 2
    assert "Right of" not in selected(report)


def test_scores_of_epochs_say_what_fools_them(report: dict[str, Any]) -> None:
    training = report["training"]["adapted"]
    training["epoch"]["score/snd"] = [3.0] * len(training["epoch_step"])
    (panel,) = [panel for panel in panels(report) if panel.key == "score/snd"]
    assert panel.title == "Score: soft neighbourhood density"
    assert "highest where the model collapsed" in panel.reading
