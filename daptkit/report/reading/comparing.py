"""Words for a comparison of methods, on the terminal and on its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daptkit.report.reading.words import listing

Data = Mapping[str, Any]

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
    """Return a method's name; the one without any method says what it is."""
    return "none (source-only)" if method == "none" else method


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
        (ESTIMATES[name], assumption, listing(levels))
        for name, (assumption, levels) in found.items()
    ]


def assumption_lines(data: Data) -> list[str]:
    """Return one line for each estimate: what it assumes, and how far that can be believed."""
    return [
        f"estimate {name}, assuming that {assumption}: {level} here"
        for name, assumption, level in assumptions(data)
    ]


def collapsed(cells: Sequence[Data]) -> str:
    """Say in how many of a method's runs nearly every target image got one class."""
    done = [cell for cell in cells if cell["status"] == "done"]
    if not done:
        return "-"
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
        " of target images before use."
    )
