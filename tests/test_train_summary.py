"""The closing summary: its figures by plain loops, and what it says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from daptkit.assess.summary import collapse_check, summary_text, validation_score


def figures(**values: Any) -> dict[str, Any]:
    scores = {"accuracy": 0.91234, "balanced_accuracy": float("nan")}
    distances = {"proxy_a_distance": 1.5, "mmd2": -0.0004, "knn_domain_accuracy": None}
    return {
        "method": "dann+bbse",
        "n_target": 40,
        "source_validation": {"source-only": scores, "adapted": scores},
        "divergence": {"source-only": distances, "adapted": distances},
        "prior": {
            "source": {"a": 0.75, "b": 0.25},
            "predicted_twin": {"a": 0.6, "b": 0.4},
            "predicted": {"a": 0.5, "b": 0.5},
            "target": None,
        },
        "prior_interval": "patient",
        "collapse": {"collapsed": False, "never": [], "fractions": {}},
        "notes": ["bbse: not trusted"],
        **values,
    }


def test_validation_score_by_loops() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 2], 50)  # class 1 is absent
    predicted = rng.integers(0, 3, 50)
    score = validation_score(predicted, labels)
    right = [int(p) == int(y) for p, y in zip(predicted, labels, strict=True)]
    assert score.accuracy == pytest.approx(sum(right) / 50)
    recalls = []
    for c in (0, 2):
        hits = [r for r, y in zip(right, labels, strict=True) if y == c]
        recalls.append(sum(hits) / len(hits))
    assert score.balanced_accuracy == pytest.approx(sum(recalls) / 2)


def test_collapse_check() -> None:
    spread = collapse_check(np.array([0, 0, 1, 0]), ("a", "b", "c"))
    assert spread.to_json() == {
        "fractions": {"a": 0.75, "b": 0.25, "c": 0.0},
        "never": ["c"],
        "collapsed": False,
    }
    assert collapse_check(np.array([1] * 97 + [0] * 3), ("a", "b")).collapsed
    assert not collapse_check(np.array([1] * 95 + [0] * 5), ("a", "b")).collapsed


def test_text_names_the_calibrations_and_why_there_was_no_choice() -> None:
    plain = {"kind": "temperature", "note": "2 of 3 classes have few"}
    text = summary_text(figures(calibration={"source-only": plain, "adapted": plain}))
    assert "calibrated by a temperature (source-only), a temperature (adapted)\n  2 of 3" in text
    assert text.count("2 of 3 classes") == 1
    vector = {"kind": "vector", "note": ""}
    text = summary_text(figures(calibration={"source-only": vector}))
    assert "calibrated by a scale and a bias for each class (source-only)\n\n" in text
    assert "calibrated" not in summary_text(figures())  # of a run of before


def test_text_shows_both_models() -> None:
    text = summary_text(figures())
    lines = [line.split() for line in text.splitlines()]
    assert ["accuracy", "0.912", "0.912"] in lines
    assert ["balanced", "accuracy", "-", "-"] in lines
    assert ["knn", "domain", "accuracy", "-", "-"] in lines
    assert ["a", "0.750", "0.600", "0.500"] in lines
    assert "note: bbse: not trusted" in text
    assert "predictions spread over every class" in text
    assert "verdict" not in text


@pytest.mark.parametrize(
    ("verdict", "deliver", "delivered", "said"),
    [
        ("helped", "adapted", "adapted", "seems to have helped\n  why\n  the adapted model is"),
        ("hurt", "source-only", "source-only", "the source-only model is delivered (--no-guard"),
        ("hurt", "source-only", "adapted", "delivered all the same, because of --no-guard"),
        ("no evidence", "source-only", "source-only", "as a precaution the source-only model is"),
        ("can't know", "adapted", "adapted", "cannot be known without labels"),
    ],
)
def test_text_ends_with_the_verdict(verdict: str, deliver: str, delivered: str, said: str) -> None:
    given = {"verdict": verdict, "deliver": deliver, "delivered": delivered, "reasons": ["why"]}
    text = summary_text(figures(), given)
    assert "\n\nverdict, without target labels: " in text
    assert said in text.split("verdict, without")[1]


def test_text_warns_of_a_collapse() -> None:
    prior = {**figures()["prior"], "target": {"a": 0.125, "b": 0.875}}
    text = summary_text(
        figures(collapse={"collapsed": True, "never": ["b"], "fractions": {}}, prior=prior)
    )
    assert "may have collapsed" in text
    assert "never predicted on the target: b" in text
    assert "target estimate" in text
    assert "0.875" in text


def test_text_says_when_an_interval_is_image_level() -> None:
    ends = {"target": {"a": 0.1, "b": 0.9}, "target_low": {"a": 0.0, "b": 0.8}}
    prior = {**figures()["prior"], **ends, "target_high": {"a": 0.2, "b": 1.0}}
    assert "image-level" not in summary_text(figures(prior=prior))
    assert "image-level" in summary_text(figures(prior=prior, prior_interval="image"))
    assert "image-level" not in summary_text(figures(prior_interval="image"))


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ((0.05, 0.01, 0.09), "lost at the source by adapting: 0.050 (0.010 to 0.090)"),
        ((-0.05, -0.15, 0.04), "gained at the source by adapting: 0.050 (-0.040 to 0.150)"),
        ((0.05, None, None), "lost at the source by adapting: 0.050\n"),
    ],
)
def test_text_says_what_adapting_cost_at_the_source(lost: tuple[Any, ...], words: str) -> None:
    forgotten = dict(zip(("value", "low", "high"), lost, strict=True))
    assert f"balanced accuracy {words}" in summary_text(figures(forgotten=forgotten))
