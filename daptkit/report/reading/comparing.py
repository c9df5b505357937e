"""Words for a comparison of methods, on the terminal and on its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daptkit.report.reading.words import DASH, RELIABILITY, between, listing, percent

Data = Mapping[str, Any]

SCRATCH = "from-scratch"
"""Row of the network from random weights, where it was asked for."""

ESTIMATES = {
    "atc": "ATC",
    "atc_entropy": "ATC, entropy",
    "doc": "DoC",
    "prior_weighted_recall": "weighted recall",
    "gde": "agreement",
    "aline": "line of agreement",
}
"""Short names of the accuracy estimates, in the order of the columns."""

SCORE_NAMES = {
    "im": "IM ↑",
    "entropy": "entropy ↓",
    "snd": "SND ↑",
    "bnm": "BNM ↑",
    "iwcv": "IW risk ↓",
    "atc": "ATC ↑",
}
"""Short names of the selection scores; the arrow points to where better is."""

_KINDS = {
    "none": "no shift was found",
    "covariate": "the images differ (covariate shift)",
    "label": "class frequencies differ (label shift)",
    "both": "images and class frequencies differ",
    "unclear": "it is not clear what differs",
}


def method_name(method: str) -> str:
    """Return a method's name; those without any method say what they are."""
    return {"none": "none (source-only)", SCRATCH: "none, from scratch"}.get(method, method)


def rows(data: Data) -> list[str]:
    """Return what stands in a row of its own: the methods, and the network from random weights."""
    return [*data["methods"], *([SCRATCH] if data["from_scratch"] else [])]


def cells(data: Data) -> list[Data]:
    """Return all runs, those of the network from random weights last."""
    return [*data["cells"], *(data["from_scratch"] or {"cells": []})["cells"]]


def summary(data: Data, method: str) -> Mapping[str, Any]:
    """Return means and deviations over the seeds of a row."""
    of = data["from_scratch"]["summary"] if method == SCRATCH else data["summary"][method]
    found: Mapping[str, Any] = of
    return found


def shift_line(data: Data) -> str:
    """Say what the source-only models find to differ between the sites."""
    kinds = {seed: found["kind"] for seed, found in data["shift"].items()}
    if not kinds:
        return "No diagnosis of the shift: there is no source-only model."
    if len(set(kinds.values())) == 1:
        return f"Diagnosis by the source-only model: {_KINDS[next(iter(kinds.values()))]}."
    parts = [f"seed {seed}: {_KINDS[kind]}" for seed, kind in kinds.items()]
    return f"Diagnosis by the source-only model: {'; '.join(parts)}."


def assumptions(data: Data) -> list[tuple[str, str, str]]:
    """Return name, assumption and reliability of each estimate of accuracy.

    The reliability is that under the diagnosis; where the seeds differ, all are named.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for cell in data["cells"]:
        for estimate in cell.get("estimates", ()):
            _, levels = found.setdefault(estimate["name"], (estimate["assumption"], []))
            if estimate["reliability"] not in levels:
                levels.append(estimate["reliability"])
    return [
        (ESTIMATES[name], assumption, listing([RELIABILITY[level] for level in levels]))
        for name, (assumption, levels) in found.items()
    ]


def assumption_lines(data: Data) -> list[str]:
    """Return one line for each estimate: what it assumes, and how far that can be believed."""
    return [
        f"estimate {name}, assuming that {assumption}: {level} here"
        for name, assumption, level in assumptions(data)
    ]


def title(data: Data) -> str:
    """Return the heading of the page."""
    names = [m for m in data["methods"] if m != "none"]
    if not names:
        return "Source-only, over several seeds"
    return f"{listing([' + '.join(m.split('+')) for m in names])} beside source-only"


def seeds(data: Data) -> str:
    """Say which seeds were run."""
    first, *others = data["seeds"]
    return f"seeds {first} to {others[-1]}" if others else f"seed {first}"


def warnings(data: Data) -> list[str]:
    """Return what a reader must know first: runs that failed or collapsed."""
    failed = [c["name"] for c in data["cells"] if c["status"] == "failed"]
    found = [f"Not finished: {listing(failed)}."] if failed else []
    fallen = [
        c["name"] for c in data["cells"] if c["status"] == "done" and c["collapse"]["collapsed"]
    ]
    if fallen:
        found.append(f"Nearly every target image gets the same class in {listing(fallen)}.")
    return found


def runs_of(data: Data, method: str) -> list[Data]:
    """Return the runs of a method."""
    return [cell for cell in cells(data) if cell["method"] == method]


def rank_text(data: Data, method: str) -> str:
    """Return a method's combined rank, or why it has none."""
    rank = data["choice"]["rank"].get(method)
    if rank is not None:
        return f"{rank:.1f}"
    return "vetoed" if method in data["choice"]["vetoes"] else DASH


def place(data: Data, cell: Data) -> str:
    """Return a run's place within its seed."""
    order = data["choice"]["seeds"][str(cell["seed"])]["order"]
    if cell["method"] == SCRATCH:
        return DASH
    return str(order.index(cell["method"]) + 1) if cell["method"] in order else "vetoed"


def estimate_columns(data: Data) -> list[tuple[str, str]]:
    """Return the estimates that some run has, with their titles."""
    here = {e["name"] for cell in data["cells"] for e in cell.get("estimates", ())}
    return [(name, title) for name, title in ESTIMATES.items() if name in here]


def score_columns(data: Data) -> dict[str, str]:
    """Return the selection scores with their titles, those of plugins after daptkit's own."""
    here = dict.fromkeys(name for cell in data["cells"] for name in cell["values"])
    found = [name.removeprefix("score_") for name in here if name.startswith("score_")]
    return SCORE_NAMES | {name: name for name in found if name not in SCORE_NAMES}


def estimate_text(cell: Data, name: str) -> str:
    """Return one estimate of a run as a percentage."""
    return percent(cell["values"].get(f"estimate_{name}"))


def estimate_ends(cell: Data, name: str) -> str:
    """Return the interval of one estimate of a run."""
    found = [e["estimated_accuracy"] for e in cell["estimates"] if e["name"] == name]
    return between(found[0]) if found else ""


def weights_line(data: Data) -> str:
    """Say how much each score counts, which follows from the diagnosis."""
    weights = [one["weights"] for one in data["choice"]["seeds"].values()]
    if not weights or any(one != weights[0] for one in weights):
        return "Their weights follow from the diagnosis, which differs between the seeds."
    parts = [f"{SCORE_NAMES[n].split()[0]} {w:g}" for n, w in weights[0].items()]
    return f"Weights under this diagnosis: {', '.join(parts)}.{_trained_confidence(data)}"


def _trained_confidence(data: Data) -> str:
    """Say why scores of the target's predictions do not count, where they do not."""
    methods = data["choice"].get("raise_confidence", [])
    if not methods:
        return ""
    return (
        f" The loss of {listing(methods)} raises confidence on the target, right or not, so scores"
        " of the target's predictions count only in seeds where that was vetoed."
    )


def audit_line(data: Data) -> str:
    """Say how many images were scored, and what the intervals rest on."""
    one = next(iter(data["audit"]["cells"].values()))
    kind = {"patient": "patients", "image": "images, since not every one names its patient"}
    return f"{one['n']:,} images were scored; intervals are of resampled {kind[one['interval']]}."


def verdicts(cells: Sequence[Data]) -> str:
    """Say what the verdicts on a method's runs were: ``no evidence``, or ``helped 2, hurt 1``."""
    found = [c["verdict"]["verdict"] for c in cells if c.get("verdict")]
    names = list(dict.fromkeys(found))
    if len(names) < 2:
        return names[0] if names else DASH
    return ", ".join(f"{name} {found.count(name)}" for name in names)


def collapsed(cells: Sequence[Data]) -> str:
    """Say in how many of a method's runs nearly every target image got one class."""
    done = [cell for cell in cells if cell["status"] == "done"]
    if not done:
        return DASH
    n = sum(cell["collapse"]["collapsed"] for cell in done)
    return f"{n} of {len(done)}" if n else "no"


def recommendation(data: Data) -> str:
    """Return the recommended method, or why there is none; it is never said to be better."""
    choice, seeds = data["choice"], len(data["seeds"])
    chosen = choice["recommended"]
    if chosen is None:
        return (
            "Recommended by the scores without labels: no method, since each was vetoed or failed."
            " Label a small random sample of target images."
        )
    of = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return (
        f"Recommended by the scores without labels: {method_name(chosen)} (mean place"
        f" {choice['rank'][chosen]:.1f} over {of}). They can be wrong: label a small random sample"
        f" of target images before use.{_trained_confidence(data)}"
    )
