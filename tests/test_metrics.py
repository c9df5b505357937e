"""Scores against scikit-learn and plain loops, and what their intervals claim."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from daptkit.assess.auroc import weighted_auroc
from daptkit.assess.intervals import biased_interval, resample_counts
from daptkit.assess.metrics import score
from daptkit.errors import DaptkitError, DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def simulated(n: int = 120, n_classes: int = 4, seed: int = 0) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(n_classes), rng.integers(n_classes, size=n - n_classes)])
    logits = rng.normal(size=(n, n_classes)).round(1)  # rounded, so that scores tie
    logits[np.arange(n), labels] += 1.0
    posterior = np.exp(logits)
    return posterior / posterior.sum(axis=1, keepdims=True), labels


def scored(posterior: Floats, labels: Ints, **options: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "map_prediction": posterior.argmax(axis=1),
        "balanced_prediction": posterior.argmax(axis=1),
        "classes": [f"class {k}" for k in range(posterior.shape[1])],
        "groups": np.arange(len(labels)),
        "patients_known": False,
        "n_bootstrap": 40,
    }
    return score(posterior, labels, **(arguments | options))


def test_values_match_scikit_learn() -> None:
    posterior, labels = simulated()
    predicted = posterior.argmax(axis=1)
    balanced = (posterior / labels_prior(labels)).argmax(axis=1)
    result = scored(posterior, labels, balanced_prediction=balanced)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, balanced),
        "auroc": reference.roc_auc_score(labels, posterior, multi_class="ovr"),
        "nll": reference.log_loss(labels, posterior),
    }
    assert {k: result[k]["value"] for k in expected} == pytest.approx(expected, abs=1e-12)
    assert result["confusion_matrix"] == reference.confusion_matrix(labels, predicted).tolist()
    recalls = reference.recall_score(labels, predicted, average=None)
    for k, name in enumerate(result["classes"]):
        row = result["per_class"][name]
        assert row["sensitivity"]["value"] == pytest.approx(recalls[k])
        specificity = reference.recall_score(labels != k, predicted != k)
        assert row["specificity"]["value"] == pytest.approx(specificity)
        area = reference.roc_auc_score(labels == k, posterior[:, k])
        assert row["auroc"]["value"] == pytest.approx(area)
        assert row["support"] == int((labels == k).sum())


def labels_prior(labels: Ints) -> Floats:
    return np.bincount(labels) / len(labels)


def test_two_classes_take_the_last_as_the_positive() -> None:
    posterior, labels = simulated(n_classes=2)
    area = reference.roc_auc_score(labels, posterior[:, 1])
    assert scored(posterior, labels)["auroc"]["value"] == pytest.approx(area)
    assert scored(posterior, 1 - labels)["auroc"]["value"] == pytest.approx(1 - area)


def test_ece_and_brier_match_plain_loops() -> None:
    posterior, labels = simulated()
    ece = 0.0
    for b in range(15):
        gap = 0.0
        for i, row in enumerate(posterior):
            confidence = float(max(row))
            if b / 15 < confidence <= (b + 1) / 15:
                gap += float(int(np.argmax(row)) == labels[i]) - confidence
        ece += abs(gap) / len(labels)
    brier = 0.0
    for i, row in enumerate(posterior):
        for k, p in enumerate(row):
            brier += (float(p) - float(labels[i] == k)) ** 2 / len(labels)
    result = scored(posterior, labels)
    assert result["ece"]["value"] == pytest.approx(ece, abs=1e-12)
    assert result["brier"]["value"] == pytest.approx(brier, abs=1e-12)


def test_ece_bins_are_open_below_and_closed_above() -> None:
    """With 15 bins, .6 ends a bin: it shares one with .59 and none with .61."""

    def ece(right: float, wrong: float) -> Any:
        posterior = np.array([[right, 1 - right], [wrong, 1 - wrong]])
        return scored(posterior, np.array([0, 1]))["ece"]["value"]

    assert ece(0.6, 0.61) == pytest.approx((0.4 + 0.61) / 2)
    assert ece(0.6, 0.59) == pytest.approx((0.59 - 0.4) / 2)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12
    )
)
def test_weighted_auroc_counts_pairs(rows: list[tuple[int, bool, int]]) -> None:
    wins = pairs = 0.0
    for score_i, positive_i, weight_i in rows:
        for score_j, positive_j, weight_j in rows:
            if positive_i and not positive_j:
                pairs += weight_i * weight_j
                wins += weight_i * weight_j * ((score_i > score_j) + 0.5 * (score_i == score_j))
    scores, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    area = weighted_auroc(scores.astype(np.float64), positive, weights[:, None].astype(np.float64))
    assert area[0] == pytest.approx(wins / pairs if pairs else math.nan, nan_ok=True)


def test_resamples_are_the_scores_of_the_drawn_images() -> None:
    """A resample by counts equals scoring images copied as often as their patient was drawn."""
    posterior, labels = simulated(n=60)
    groups = np.arange(60) // 4
    draws: dict[str, list[float]] = {"accuracy": [], "auroc": [], "nll": [], "brier": []}
    for counts in np.concatenate(list(resample_counts(15, 60, 25, seed=3))):
        rows = np.repeat(np.arange(60), counts[groups].astype(np.int64))
        one = scored(posterior[rows], labels[rows], n_bootstrap=0)
        for name, values in draws.items():
            values.append(one[name]["value"])
    result = scored(posterior, labels, groups=groups, patients_known=True, n_bootstrap=25, seed=3)
    for name, values in draws.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert (result[name]["low"], result[name]["high"]) == pytest.approx((low, high)), name


def test_resamples_draw_whole_groups_and_ignore_the_block_size() -> None:
    small = np.concatenate(list(resample_counts(5, 5, 30, seed=1)))
    blocks = list(resample_counts(5, 1_000_000, 30, seed=1))
    assert len(blocks) > 1
    np.testing.assert_array_equal(small, np.concatenate(blocks))
    assert set(small.sum(axis=1)) == {5.0}


def test_patients_widen_the_interval_of_clustered_images() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    labels = np.arange(300) % 2
    right = rng.random(30)[groups] < 0.7  # a patient's images are all right or all wrong
    predicted = np.where(right, labels, 1 - labels)
    posterior = np.full((300, 2), 0.2)
    posterior[np.arange(300), predicted] = 0.8
    by_patient = scored(posterior, labels, groups=groups, patients_known=True, n_bootstrap=400)
    by_image = scored(posterior, labels, groups=groups, n_bootstrap=400)
    width = {
        result["interval"]: result["accuracy"]["high"] - result["accuracy"]["low"]
        for result in (by_patient, by_image)
    }
    assert width["patient"] > 2 * width["image"]
    assert (by_patient["groups"], by_image["groups"]) == (30, 300)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        posterior = np.full((100, 2), 0.5)
        labels = rng.integers(2, size=100)
        predicted = np.where(rng.random(100) < 0.8, labels, 1 - labels)
        interval = scored(posterior, labels, map_prediction=predicted, n_bootstrap=200)["accuracy"]
        covered += interval["low"] <= 0.8 <= interval["high"]
    assert covered >= 88


def test_same_seed_same_interval() -> None:
    posterior, labels = simulated()
    first = scored(posterior, labels, seed=5)
    assert first == scored(posterior, labels, seed=5)
    assert first["nll"] != scored(posterior, labels, seed=6)["nll"]


def test_absent_classes_are_listed_and_left_out_of_the_means() -> None:
    posterior, labels = simulated(n_classes=3)
    keep = labels != 1
    posterior, labels = posterior[keep], labels[keep]
    result = scored(posterior, labels)
    assert result["absent"] == ["class 1"]
    assert result["per_class"]["class 1"]["sensitivity"]["value"] is None
    assert result["per_class"]["class 1"]["auroc"]["value"] is None
    assert 0 < result["per_class"]["class 1"]["specificity"]["value"] < 1
    recalls = [float((posterior.argmax(1) == k)[labels == k].mean()) for k in (0, 2)]
    areas = [reference.roc_auc_score(labels == k, posterior[:, k]) for k in (0, 2)]
    assert result["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls))
    assert result["auroc"]["value"] == pytest.approx(np.mean(areas))


def test_one_class_has_no_auroc() -> None:
    posterior, _ = simulated()
    result = scored(posterior, np.zeros(len(posterior), dtype=np.int64))
    assert result["auroc"] == {"value": None, "low": None, "high": None}
    assert result["per_class"]["class 0"]["specificity"]["value"] is None


@pytest.mark.parametrize("n", [1, 6])
def test_one_patient_or_one_image_gives_values_without_intervals(n: int) -> None:
    posterior, labels = simulated()
    groups = np.full(n, 7)
    result = scored(posterior[:n], labels[:n], groups=groups, patients_known=True)
    assert result["accuracy"]["value"] is not None
    for name in ("accuracy", "balanced_accuracy", "auroc", "ece", "nll", "brier"):
        assert result[name]["low"] is None and result[name]["high"] is None


def test_a_class_of_one_patient_has_no_interval_of_its_own() -> None:
    posterior, labels = simulated()
    groups = np.where(labels == 0, 1000, np.arange(len(labels)))
    result = scored(posterior, labels, groups=groups, patients_known=True)
    assert result["per_class"]["class 0"]["sensitivity"]["low"] is None
    assert result["per_class"]["class 1"]["sensitivity"]["low"] is not None
    assert result["accuracy"]["low"] is not None


def test_all_right_is_not_certain() -> None:
    labels = np.arange(10) % 2
    posterior = np.where(np.eye(2)[labels] == 1, 0.9, 0.1)
    right = scored(posterior, labels)
    assert right["accuracy"] == {"value": 1.0, "low": pytest.approx(0.025**0.1), "high": 1.0}
    of_class = right["per_class"]["class 0"]["sensitivity"]
    assert of_class == {"value": 1.0, "low": pytest.approx(0.025**0.2), "high": 1.0}
    assert right["balanced_accuracy"]["low"] == pytest.approx(0.025**0.1)
    wrong = scored(1 - posterior, labels)
    assert wrong["accuracy"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(1 - 0.025**0.1)}


def test_zero_probability_of_the_true_class_stays_finite() -> None:
    result = scored(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert result["nll"]["value"] == pytest.approx(-math.log(2**-52) / 2)
    assert result["brier"]["value"] == pytest.approx(1.0)


def test_ece_interval_holds_its_value() -> None:
    interval = biased_interval(0.05, np.linspace(0.08, 0.2, 50))
    assert interval["low"] == 0.0 and interval["high"] == 0.05
    middle = biased_interval(0.5, np.linspace(0.5, 0.7, 201))
    assert middle["low"] == pytest.approx(0.305) and middle["high"] == 0.5


def test_result_is_plain_json() -> None:
    posterior, labels = simulated()
    text = json.dumps(scored(posterior, labels), allow_nan=False)
    parsed = json.loads(text)
    for name in ("accuracy", "balanced_accuracy", "auroc", "ece", "nll", "brier"):
        assert parsed[name]["low"] <= parsed[name]["value"] <= parsed[name]["high"]


def test_what_cannot_be_scored_is_refused() -> None:
    posterior, labels = simulated()
    with pytest.raises(DataError, match="no labelled image"):
        scored(posterior[:0], labels[:0])
    broken = posterior.copy()
    broken[3] = np.nan
    with pytest.raises(DaptkitError, match="1 of 120 images are not finite"):
        scored(broken, labels)
    with pytest.raises(ValueError, match="outside"):
        scored(posterior, labels + 4)
    with pytest.raises(ValueError, match="groups have shape"):
        scored(posterior, labels, groups=np.arange(3), patients_known=True)
    with pytest.raises(ValueError, match="4 columns for 3 classes"):
        scored(posterior, labels, classes=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        scored(posterior - 1, labels)
