"""Sentences on class frequencies at the source and at the target."""

from __future__ import annotations

from daptkit.report.reading.words import Report, clip, is_adapted, last, listing, percent

NAMED = 2
"""Most classes that a sentence names."""


def estimate(report: Report) -> str:
    """Say what the run estimates of the target’s class frequencies, or why it does not."""
    prior = report["prior"]
    if prior["target"] is None:
        return _no_estimate(report)
    source, target = prior["source"], prior["target"]
    moved = sorted(target, key=lambda c: -abs(target[c] - source.get(c, 0.0)))[:NAMED]
    named = [
        f"{clip(c, 40)} {percent(target[c])}{_ends(report, c)}, where the source has"
        f" {percent(source.get(c))}"
        for c in moved
    ]
    first = "The class frequencies of the target site are estimated, not counted"
    which = "the largest differences" if len(target) > NAMED else "the estimate"
    return f"{first}; {which}: {'; '.join(named)}.{_unit(report)}"


def _unit(report: Report) -> str:
    """Say what the interval of the estimate resamples, where there is one."""
    if report["prior"]["target_low"] is None:
        return ""
    if all(report["data"]["patients_known"].values()):
        return " Their intervals resample whole patients."
    return (
        " Their intervals are image-level: not every image names its patient, so where images share"
        " one the intervals are too narrow."
    )


def _ends(report: Report, name: str) -> str:
    low, high = report["prior"]["target_low"], report["prior"]["target_high"]
    if low is None or high is None:
        return ""
    return f" ({percent(low[name])} to {percent(high[name])})"


def _no_estimate(report: Report) -> str:
    said = {name: r for name, r in report["method_reports"].items() if isinstance(r, dict)}
    estimated = {name: r for name, r in said.items() if r.get("estimate") or r.get("prior")}
    doubted = [name for name, r in estimated.items() if r.get("trusted") is False]
    if doubted:
        return (
            f"{listing(doubted)} estimated the target’s class frequencies but does not trust the"
            " estimate, so predictions keep the source’s frequencies; the notes say why."
        )
    if estimated:
        return (
            f"{listing(list(estimated))} estimated the target’s class frequencies, but predictions"
            " do not use the estimate and keep the source’s frequencies."
        )
    return (
        "The target’s class frequencies were not estimated by a method of this run; predictions"
        " keep the source’s."
    )


def most_moved(report: Report) -> str:
    """Name the class whose share of the target's predictions differs most from the source."""
    source, shares = report["prior"]["source"], report["predicted"]
    after = shares[last(report)]
    name = max(after, key=lambda c: abs(after[c] - source.get(c, 0.0)))
    before = f" ({percent(shares['source-only'].get(name))} before)" if is_adapted(report) else ""
    return (
        f"“{clip(name, 40)}” is predicted for {percent(after[name])} of the target images{before};"
        f" among the source’s labels it is {percent(source.get(name))}."
    )


def predictions(report: Report) -> str:
    """Warn of a collapse to one class and name classes never predicted, or return ``""``."""
    collapse = report["collapse"]
    lines = []
    if collapse["collapsed"]:
        name = max(collapse["fractions"], key=collapse["fractions"].__getitem__)
        lines.append(
            f"Warning: {percent(collapse['fractions'][name])} of the target images are predicted as"
            f" “{clip(name, 40)}”. The model may have collapsed to one class; do not use it"
            " before it was checked on labelled target images."
        )
    if collapse["never"]:
        never = [f"“{clip(c, 40)}”" for c in collapse["never"]]
        shown = never[: 3 * NAMED]
        more = len(never) - len(shown)
        names = listing([*shown, f"{more} more"] if more else shown)
        lines.append(
            f"No target image is predicted as {names}: the site may have none, or the model misses"
            " them."
        )
    return " ".join(lines)
