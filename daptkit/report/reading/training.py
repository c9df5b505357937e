"""Sentences that read the curves of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from daptkit.assess.summary import selected_text, unfrozen_text
from daptkit.report.reading.names import MEANINGS, SCORES, series_title
from daptkit.report.reading.words import (
    LONG,
    Report,
    is_adapted,
    number,
    percent,
    significant,
)

CHANCE = 0.5
"""Accuracy of a discriminator that cannot tell two equally frequent sites apart."""

FEW = 5
"""Logged values below which a curve has ends but no course that could be read."""

TOO_FEW = "Too few values were logged to read a course; a smaller --log-interval gives more."

CLEAR = 0.05
"""Change of a discriminator's accuracy that is told as a change."""

SWINGING = 0.1
"""Mean change between logged values, beyond that from start to end, that is told as swinging."""

STILL_APART = 1.5
"""Proxy A-distance from which on the sites count as still told apart."""

Values = Sequence[float | None]


@dataclass(frozen=True)
class Panel:
    """One series of training, as its figure shows it.

    Args:
        key: name of the series in report.json, unique within ``kind``.
        kind: ``lr``, ``losses``, ``logged`` or ``epoch``.
        title: for people.
        lines: model -> (steps, values).
        reading: what the curve says, one or two sentences.
        is_share: values lie in [0, 1] and are written as percentages.
        chance: value to mark as chance, if there is one.
        marks: model -> steps after which a further stage of the backbone was trained.
        selected: step of the adapted model that was taken, where it was chosen among the epochs.
    """

    key: str
    kind: str
    title: str
    lines: dict[str, tuple[Sequence[float], Values]]
    reading: str
    is_share: bool
    chance: float | None
    marks: dict[str, list[float]]
    selected: float | None = None


def panels(report: Report) -> list[Panel]:
    """Return one panel for each series that either model has."""
    training = report["training"]
    models = [m for m in report["models"] if m in training]
    kinds = (("losses", "step"), ("lr", "step"), ("logged", "step"), ("epoch", "epoch_step"))
    made = []
    for kind, axis in kinds:
        series = {m: _series(training[m], kind) for m in models}
        for key in _in_order(series):
            lines = {m: (training[m][axis], s[key]) for m, s in series.items() if key in s}
            known = {m: line for m, line in lines.items() if _finite(line[1])}
            if known:
                made.append(_panel(report, kind, key, known))
    return made


def _series(training: dict[str, Any], kind: str) -> dict[str, Values]:
    if kind == "lr":
        return {"lr": training["lr"]}
    series: dict[str, Values] = training[kind]
    return series


def _in_order(series: dict[str, dict[str, Values]]) -> list[str]:
    return list(dict.fromkeys(key for one in series.values() for key in one))


def _panel(
    report: Report, kind: str, key: str, lines: dict[str, tuple[Sequence[float], Values]]
) -> Panel:
    discriminator = key.endswith("discriminator_accuracy")
    share = key.endswith("accuracy")
    model = report["models"][-1] if report["models"][-1] in lines else next(iter(lines))
    values = lines[model][1]
    if discriminator:
        distance = report["divergence"][model]["proxy_a_distance"]
        reading = read_discriminator(values, distance)
    elif key == "source_val_loss":
        reading = read_validation_loss(values, adapted=model == "adapted")
    elif kind == "losses" and _has_discriminator(report, key):
        reading = (
            f"From {_from_to(values, share=False)}. The less well the discriminator tells the sites"
            " apart, the higher this loss."
        )
    elif kind == "losses":
        reading = read_loss(values)
    else:
        reading = _ends_sentence(values, share)
    meaning = SCORES.get(key) or MEANINGS.get(key.partition("/")[2])
    if meaning is not None:
        reading = f"{meaning} {reading}"
    twin = lines.get("source-only")
    if is_adapted(report) and model == "adapted" and twin is not None and kind != "lr":
        other = _from_to(twin[1], share)
        same = other == _from_to(values, share)
        reading += " The same for source-only." if same else f" Source-only: {other}."
    return Panel(
        key=key,
        kind=kind,
        title=series_title(key, kind),
        lines=lines,
        reading=reading,
        is_share=share,
        chance=CHANCE if discriminator else None,
        marks={m: unfrozen_at(report["training"][m]) for m in lines},
        selected=selected_at(report) if "adapted" in lines else None,
    )


def selected_at(report: Report) -> float | None:
    """Return the step at which the adapted model was taken; ``None`` where that is the end."""
    selection = report.get("selection")
    if selection is None:
        return None
    steps = report["training"]["adapted"]["epoch_step"]
    return float(steps[selection["epoch"] - 1])


def selected(report: Report) -> str:
    """Say which epoch's model was taken and why; nothing where it is the last in any case."""
    selection = report.get("selection")
    if selection is None:
        return ""
    text = (
        f"The adapted model is that of epoch {selected_text(selection)}. No target label was read."
    )
    if selection["epoch"] == selection["of"]:
        return text
    return f"{text} Right of the solid vertical line is training that was not used."


def unfrozen_at(training: Mapping[str, Any]) -> list[float]:
    """Return the steps after which a training unfroze a stage."""
    return [entry["step"] for entry in training.get("unfreeze", ()) if entry["stages"]]


def unfreezing(report: Report) -> str:
    """Say how gradual unfreezing went; nothing for another strategy."""
    if report["run"]["finetune"] != "gradual":
        return ""
    told = [
        f"{LONG[model].capitalize()}: {unfrozen_text(report['training'][model]['unfreeze'])}."
        for model in report["models"]
        if "unfreeze" in report["training"].get(model, {})
    ]
    return " ".join(
        (
            "Bottleneck and head were trained first, then stages of the backbone from the top, each"
            " when the loss on the source’s validation images no longer improved (dotted lines).",
            *told,
        )
    )


def read_discriminator(values: Values, distance: float | None = None) -> str:
    """Read the accuracy of a domain discriminator, 0.5 being chance.

    Args:
        values: over the run.
        distance: proxy A-distance of the features at the end, by a fresh classifier.
    """
    first, end = ends(values)
    known = _finite(values)
    if len(known) < FEW:
        return f"{_ends_sentence(values, share=True)} {TOO_FEW}"
    text = f"Started at {percent(first)} and ended at {percent(end)}"
    if end <= CHANCE + CLEAR and max(_smoothed(known)) <= CHANCE + 2 * CLEAR:
        return (
            f"{text}, near chance all along: either the features hold no trace of the site or the"
            " discriminator learned nothing. The proxy A-distance above tells which."
        )
    if _swing(known) > SWINGING:
        return (
            f"{text}, swinging between {percent(min(known))} and {percent(max(known))}:"
            " discriminator and features take turns and do not settle."
        )
    if end > first + CLEAR:
        return f"{text}: the discriminator got ahead of the alignment."
    if end >= first - CLEAR and end >= 0.9:
        return f"{text}: alignment has not worked against it; the features still show the site."
    if end >= first - CLEAR:
        return f"{text}: about the same; alignment and discriminator held each other."
    if end <= CHANCE + CLEAR:
        text += ": at the end the discriminator could hardly tell the sites apart."
    else:
        text += ": the discriminator could tell the sites apart less well at the end."
    if distance is not None and distance >= STILL_APART:
        text += f" A fresh classifier still can (proxy A-distance {number(distance)})."
    return text


def read_validation_loss(values: Values, *, adapted: bool = False) -> str:
    """Read the loss on the source’s validation images after every epoch.

    Args:
        values: one an epoch.
        adapted: a method trained the model, which may cost the task at the source something.
    """
    known = _finite(values)
    lowest = min(known)
    if len(known) == 1:
        return f"{significant(lowest)} after the only epoch."
    text = (
        f"Lowest after epoch {values.index(lowest) + 1} ({significant(lowest)}),"
        f" {significant(known[-1])} at the end"
    )
    if len(known) < 3:
        return f"{text}."
    if known[-1] <= 1.1 * lowest or known[-1] - lowest <= 0.01:
        return f"{text}, no clear rise since."
    if adapted:
        return f"{text}: it rose again, by overfitting to the source or by what adapting costs."
    return f"{text}: it rose again, a sign of overfitting to the source’s training images."


def read_loss(values: Values) -> str:
    """Read a training loss: where it started and ended, and whether it rose at the end."""
    known = _finite(values)
    text = _from_to(values, share=False)
    smooth = _smoothed(known)
    span = max(smooth) - min(smooth)
    rose = smooth[-1] - min(smooth)
    if len(smooth) > 4 and span > 0.05 * abs(smooth[0]) and rose > 0.25 * span:
        late = smooth.index(min(smooth)) >= len(smooth) // 2
        return f"From {text}; it rose {'at the end' if late else 'after an early minimum'}."
    return f"From {text}."


def ends(values: Values) -> tuple[float, float]:
    """Return the mean of the first and of the last tenth of the values that are known."""
    known = _finite(values)
    few = max(1, len(known) // 10)
    return math.fsum(known[:few]) / few, math.fsum(known[-few:]) / few


def _swing(known: list[float]) -> float:
    way = math.fsum(abs(b - a) for a, b in pairwise(known))
    return (way - abs(known[-1] - known[0])) / max(1, len(known) - 1)


def _smoothed(known: list[float]) -> list[float]:
    width = max(1, len(known) // 10)
    return [
        math.fsum(known[i : i + width]) / len(known[i : i + width])
        for i in range(0, len(known), width)
    ]


def _has_discriminator(report: Report, key: str) -> bool:
    """Say whether a loss is that of a discriminator whose accuracy is logged."""
    method, _, name = key.partition("/")
    logged = report["training"][report["models"][-1]]["logged"]
    return "domain" in name and any(
        name.startswith(f"{method}/") and name.endswith("discriminator_accuracy") for name in logged
    )


def _ends_sentence(values: Values, share: bool) -> str:
    known = _finite(values)
    if min(known) == max(known):
        return f"{percent(known[0]) if share else significant(known[0])} throughout."
    return f"From {_from_to(values, share)}."


def _from_to(values: Values, share: bool) -> str:
    if not _finite(values):
        return "not known"
    write = percent if share else significant
    first, end = (write(value) for value in ends(values))
    return f"{first} to {end}"


def _finite(values: Values) -> list[float]:
    return [float(v) for v in values if v is not None]
