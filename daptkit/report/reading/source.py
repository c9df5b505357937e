"""Sentences on the source’s validation images: scores and calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping

from daptkit.assess.summary import CALIBRATIONS
from daptkit.report.reading.words import (
    LONG,
    Report,
    count,
    is_adapted,
    last,
    number,
    percent,
    with_interval,
)

KEPT = 0.02
"""Loss of balanced accuracy on the source up to which the task counts as kept."""

SAME_CONFIDENCE = 0.02
"""Gap between confidence and accuracy that is not worth telling."""

ROUGH = 0.15
"""Width of an interval above which a small loss could not be seen."""


def task_kept(report: Report) -> str:
    """Say whether the model still knows the source’s task."""
    scores = report["source_validation"]
    after = scores[last(report)]["balanced_accuracy"]
    n = count(scores[last(report)]["n"])
    start = (
        f"On {n} source images held out from training the"
        f" {'adapted model' if is_adapted(report) else 'model'} has a balanced accuracy of"
        f" {with_interval(after)}"
    )
    if after["value"] is None:
        return "The balanced accuracy on the source could not be measured."
    before = scores["source-only"]["balanced_accuracy"] if is_adapted(report) else {"value": None}
    if before["value"] is None:
        return f"{start}."
    old = f"{start}, against {percent(before['value'])} for the source-only model"
    lost = before["value"] - after["value"]
    if lost <= KEPT and _is_rough(after):
        return f"{old}: no loss is seen, but {n} images would not show a small one."
    if lost <= KEPT:
        return f"{old}: the task at the source is kept."
    if before.get("low") is None:
        return f"{old}: lower, how surely is not known from {n} images."
    if after["value"] >= before["low"]:
        return f"{old}: lower, but within the uncertainty of {n} images."
    return f"{old}: adapting cost it some of the task at the source."


def forgotten(report: Report) -> str:
    """Say how much of the source's task the adapted model has forgotten."""
    lost = report.get("forgotten")
    if lost is None or lost["value"] is None:
        return ""
    # A loss below zero reads as its opposite unless it is called a gain.
    sign, what = (1, "Forgotten") if lost["value"] >= 0 else (-1, "Gained")
    points = number(100 * abs(lost["value"]), 1)
    text = f"{what} at the source: {points} points of balanced accuracy"
    if lost["low"] is None:
        return f"{text}, the difference of both models on the same images."
    limits = sorted(sign * lost[end] for end in ("low", "high"))
    ends = " to ".join(number(100 * limit, 1) for limit in limits)
    unit = "patients" if lost["interval"] == "patient" else "images"
    text += f" ({ends}; both models on the same resampled {unit})"
    if lost["low"] > 0:
        return f"{text}: a loss that chance does not explain."
    if lost["high"] < 0:
        return f"{text}: a gain that chance does not explain."
    return f"{text}, which chance can explain."


def from_scratch(report: Report) -> str:
    """Compare the source-only model with one from random weights, where one was trained."""
    scores = report.get("from_scratch")
    if scores is None:
        return ""
    scratch, loaded = (
        s["balanced_accuracy"] for s in (scores, report["source_validation"]["source-only"])
    )
    if scratch["value"] is None or loaded["value"] is None:
        return "The network from random weights could not be scored."
    text = (
        "Trained on the source from random weights, the same network has a balanced accuracy of"
        f" {with_interval(scratch)}; from the loaded weights, without adaptation,"
        f" {with_interval(loaded)}"
    )
    gain = loaded["value"] - scratch["value"]
    if abs(gain) <= KEPT or _overlap(scratch, loaded):
        return f"{text}: no clear difference."
    if gain > 0:
        return f"{text}: the loaded weights help at the source."
    return f"{text}: at the source the loaded weights do harm (negative transfer)."


def _overlap(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> bool:
    ends = [e.get(end) for e in (one, other) for end in ("low", "high")]
    if None in ends:
        return True
    low_one, high_one, low_other, high_other = (e for e in ends if e is not None)
    return high_one >= low_other and high_other >= low_one


def _is_rough(estimate: Mapping[str, float | None]) -> bool:
    low, high = estimate.get("low"), estimate.get("high")
    return low is None or high is None or high - low > ROUGH


def sampling(report: Report) -> str:
    """Say what the scores on the source rest on."""
    score = report["source_validation"][last(report)]
    patients = f" of {count(score['groups'])} patients" if score["interval"] == "patient" else ""
    return (
        f"Scored on {count(score['n'])} source images{patients} that were kept out of training."
        f" {interval_sentence(score)}"
    )


def interval_sentence(score: Report) -> str:
    """Say how the intervals of a score were made."""
    if not score["n_bootstrap"]:
        return "No intervals were computed."
    whole = f"Intervals are 95% bootstrap intervals ({count(score['n_bootstrap'])} resamples) over"
    if score["interval"] == "patient":
        return f"{whole} whole patients."
    return (
        f"{whole} single images: no patients are known, so where images share one the"
        " intervals are too narrow."
    )


def calibration(report: Report, model: str) -> str:
    """Compare the calibration error before and after calibrating."""
    curves = report["calibration"][model]
    raw, fitted = curves["uncalibrated"]["ece"], curves["calibrated"]["ece"]
    text = (
        f"Expected calibration error {number(raw, 3)} uncalibrated, {number(fitted, 3)} calibrated."
    )
    bins = curves["uncalibrated"]["bins"]
    if not bins:
        return text
    gap = _mean_gap(bins)
    if abs(gap) < max(SAME_CONFIDENCE, _chance_gap(bins)):
        return text
    word = "too sure" if gap > 0 else "not sure enough"
    return f"{text} Uncalibrated, the model was {word} of itself."


def calibration_choice(report: Report, model: str) -> str:
    """Say which calibration was chosen, and by which figures; empty where no run recorded it."""
    choice = report["calibration"][model].get("choice")
    if choice is None:
        return ""
    text = f"The {LONG[model]} is calibrated by {CALIBRATIONS[choice['kind']]}."
    if choice["nll"]:
        parts = [f"{CALIBRATIONS[kind]} {number(v, 3)}" for kind, v in choice["nll"].items()]
        text += (
            " Negative log likelihood of patients that each fit had not seen, in nats:"
            f" {', '.join(parts)}; of those within one standard error of the lowest, the one with"
            " fewest values is used."
        )
    note = choice["note"]
    return f"{text} {note[0].upper()}{note[1:]}." if note else text


def _mean_gap(bins: list[dict[str, float]]) -> float:
    total = sum(b["n"] for b in bins)
    return sum(b["n"] * (b["confidence"] - b["accuracy"]) for b in bins) / total


def _chance_gap(bins: list[dict[str, float]]) -> float:
    """Return the gap that a calibrated model stays below in 95 of 100 such samples."""
    variance = sum(b["n"] * b["confidence"] * (1 - b["confidence"]) for b in bins)
    return 1.96 * math.sqrt(variance) / sum(b["n"] for b in bins)


def calibration_basis(report: Report) -> str:
    """Say what the reliability diagrams rest on and what they do not show."""
    curves = report["calibration"][last(report)]
    where = (
        f"Measured on {count(curves['n'])} source images, the very ones that the calibration"
        " was fitted on, so the calibrated curve is flattering."
    )
    if curves["cross_fitted"]:
        where += (
            " There were few held-out images of some class, so models trained on parts of the"
            " source, each judged on the rest, gave these predictions."
        )
    return f"{where} It says nothing about the target site."
