"""The closing summary of a run: figures and a verdict that need no target labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

COLLAPSE_FRACTION = 0.95
"""Share of one predicted class above which the target's predictions count as collapsed."""


@dataclass(frozen=True)
class ValidationScore:
    """Accuracy and balanced accuracy on the held-out source images, in [0, 1]."""

    accuracy: float
    balanced_accuracy: float


def validation_score(predicted: Ints, labels: Ints) -> ValidationScore:
    """Score predictions (N,) against labels (N,); recalls are averaged over classes present."""
    right = predicted == labels
    recalls = [right[labels == c].mean() for c in np.unique(labels)]
    return ValidationScore(float(right.mean()), float(np.mean(recalls)))


@dataclass(frozen=True)
class CollapseCheck:
    """How target predictions spread over the classes.

    Args:
        fractions: share of each predicted class, (K,).
        never: classes that the source has and no target image is predicted as.
        collapsed: one class takes more than :data:`COLLAPSE_FRACTION` of the target.
    """

    fractions: dict[str, float]
    never: tuple[str, ...]
    collapsed: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "fractions": dict(self.fractions),
            "never": list(self.never),
            "collapsed": self.collapsed,
        }


def collapse_check(predicted: Ints, classes: tuple[str, ...]) -> CollapseCheck:
    """Count predictions (N,) of the target per class."""
    counts = np.bincount(predicted, minlength=len(classes)) / max(len(predicted), 1)
    return CollapseCheck(
        fractions=dict(zip(classes, counts.tolist(), strict=True)),
        never=tuple(c for c, share in zip(classes, counts, strict=True) if share == 0.0),
        collapsed=bool(counts.max() > COLLAPSE_FRACTION),
    )


def summary_text(figures: Mapping[str, Any], verdict: Mapping[str, Any] | None = None) -> str:
    """Return the terminal's closing summary of what ``run.json`` holds.

    Args:
        figures: ``method``, ``n_target``, ``source_validation``, ``divergence``, ``prior``,
            ``prior_interval`` (``"patient"`` or ``"image"``), ``collapse`` and ``notes``;
            ``calibration`` by model; ``forgotten`` of a run with a method, ``unfreezing`` of a
            gradual run, ``selection`` of one that chose its epoch.
        verdict: of a run with a method.
    """
    lines = [f"method {figures['method']}, {figures['n_target']} target images", ""]
    lines += _two_columns(
        "source validation", figures["source_validation"], ("accuracy", "balanced_accuracy")
    )
    lines += _calibration(figures.get("calibration", {}))
    lines += _forgotten(figures.get("forgotten"))
    lines += _two_columns(
        "divergence of the domains",
        figures["divergence"],
        ("proxy_a_distance", "mmd2", "knn_domain_accuracy"),
    )
    lines += _priors(figures["prior"], figures["prior_interval"])
    lines += _collapse(figures["collapse"])
    lines += _unfreezing(figures.get("unfreezing", {}))
    if figures.get("selection") is not None:
        lines.append(f"epoch, without target labels: {selected_text(figures['selection'])}")
    lines += [f"note: {text}" for text in figures["notes"]]
    lines += [] if verdict is None else _verdict(verdict)
    return "\n".join(lines)


def _two_columns(
    title: str, values: Mapping[str, Mapping[str, float | None]], rows: tuple[str, ...]
) -> list[str]:
    columns = list(values)
    head = f"{title:<28}" + "".join(f"{name:>14}" for name in columns)
    body = [
        f"  {row.replace('_', ' '):<26}"
        + "".join(f"{_number(values[column][row]):>14}" for column in columns)
        for row in rows
    ]
    return [head, *body, ""]


def _priors(prior: Mapping[str, Mapping[str, float] | None], interval: str) -> list[str]:
    source = prior["source"]
    assert source is not None
    columns = {name: column for name, column in prior.items() if column is not None}
    titles = {
        "source": "source",
        "predicted_scratch": "from scratch",
        "predicted_twin": "predicted before",
        "predicted": "predicted after",
        "target": "target estimate",
        "target_low": "from",
        "target_high": "to",
    }
    head = f"{'class frequencies':<28}" + "".join(f"{titles[name]:>17}" for name in columns)
    body = [
        f"  {name[:25]:<26}"
        + "".join(f"{_number(column[name]):>17}" for column in columns.values())
        for name in source
    ]
    if "target_low" in columns and interval == "image":
        body.append("  from and to are image-level: not every image names its patient")
    return [head, *body, ""]


def _collapse(check: Mapping[str, Any]) -> list[str]:
    lines = []
    if check["collapsed"]:
        lines.append(
            "warning: nearly every target image gets the same class; the model may have collapsed."
        )
    if check["never"]:
        lines.append(f"classes never predicted on the target: {', '.join(check['never'])}")
    return lines or ["collapse check: predictions spread over every class"]


def _forgotten(lost: Mapping[str, Any] | None) -> list[str]:
    if lost is None:
        return []
    # A loss below zero reads as its opposite unless it is called a gain.
    sign, what = (1, "lost") if lost["value"] >= 0 else (-1, "gained")
    ends = ""
    if lost["low"] is not None:
        low, high = sorted(sign * lost[end] for end in ("low", "high"))
        ends = f" ({_number(low)} to {_number(high)})"
    text = (
        f"balanced accuracy {what} at the source by adapting: {_number(abs(lost['value']))}{ends}"
    )
    return [text, ""]


CALIBRATIONS = {
    "identity": "nothing",
    "temperature": "a temperature",
    "bcts": "a temperature and a bias for each class",
    "vector": "a scale and a bias for each class",
}
"""Kinds of calibration, as what logits are corrected by."""


def _calibration(choices: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    known = {name: choice for name, choice in choices.items() if choice is not None}
    parts = [f"{CALIBRATIONS[choice['kind']]} ({name})" for name, choice in known.items()]
    notes = dict.fromkeys(choice["note"] for choice in known.values() if choice["note"])
    return [f"calibrated by {', '.join(parts)}", *(f"  {n}" for n in notes), ""] if known else []


VERDICTS = {
    "helped": "adapting seems to have helped",
    "no evidence": "no evidence that adapting helped or hurt",
    "hurt": "adapting seems to have hurt",
    "can't know": "whether adapting helped cannot be known without labels",
}
"""What a verdict says, in words."""


def delivered_text(verdict: Mapping[str, Any]) -> str:
    """Say which model was delivered, and why not the one that the verdict speaks for."""
    if verdict["delivered"] == "source-only":
        careful = "" if verdict["verdict"] == "hurt" else "as a precaution "
        return f"{careful}the source-only model is delivered (--no-guard delivers the adapted one)"
    if verdict["deliver"] == "source-only":
        return "the adapted model is delivered all the same, because of --no-guard"
    return "the adapted model is delivered"


def _verdict(verdict: Mapping[str, Any]) -> list[str]:
    said = f"verdict, without target labels: {VERDICTS[verdict['verdict']]}"
    why = [f"  {reason}" for reason in verdict["reasons"]]
    return ["", said, *why, f"  {delivered_text(verdict)}"]


def _unfreezing(models: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    return [f"unfrozen, {name}: {unfrozen_text(found)}" for name, found in models.items()]


def unfrozen_text(found: Sequence[Mapping[str, Any]]) -> str:
    """Say what a training unfroze and after which epoch.

    Args:
        found: its lines of kind ``unfreeze`` in ``metrics.jsonl``.
    """
    if not found:
        return "nothing of the backbone"
    steps = [f"{', '.join(e['stages'])} after epoch {e['epoch']}" for e in found if e["stages"]]
    last = found[-1]
    if not last["stages"]:
        steps.append(f"stopped after epoch {last['epoch']}, when the validation loss had risen")
    return f"{'; '.join(steps)} ({last['trained']} of {last['of']} stages)"


def selected_text(selection: Mapping[str, Any]) -> str:
    """Say which epoch's model was taken and why.

    Args:
        selection: what ``run.json`` holds of it.
    """
    text = f"{selection['epoch']} of {selection['of']} by {selection['rule']}: {selection['why']}"
    vetoed = sum(bool(one["vetoes"]) for one in selection["epochs"])
    return f"{text} ({vetoed} of {selection['of']} epochs vetoed)" if vetoed else text


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
