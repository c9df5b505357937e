"""The paragraph at the top of the page."""

from __future__ import annotations

from daptkit.report.reading.domains import closeness
from daptkit.report.reading.frequencies import estimate, most_moved
from daptkit.report.reading.source import task_kept
from daptkit.report.reading.verdict import answer
from daptkit.report.reading.words import Report, count, is_adapted, last, listing, with_interval


def title(report: Report) -> str:
    """Return the heading of the page."""
    method = " + ".join(report["run"]["method"].split("+"))
    if is_adapted(report):
        return f"Adapted to the target site with {method}"
    return "Trained at the source site, not adapted"


def in_short(report: Report) -> list[tuple[str, str]]:
    """Return the sentences of "In short", each with the words it is found by."""
    lines = [
        ("What was done.", what_was_done(report)),
        ("The sites in the features.", closeness(report)),
        ("The task at the source.", task_kept(report)),
        ("Class frequencies.", f"{estimate(report)} {most_moved(report)}"),
    ]
    said = answer(report)
    lines += [("Did adapting help?", said)] if said else []
    true = report["true_scores"]
    return lines if true is None else [*lines, ("True scores.", true_scores(report))]


def true_scores(report: Report) -> str:
    """Say what the models truly score at the target, where that is known."""
    scores = report["true_scores"]["scores"]
    after = with_interval(scores[last(report)]["balanced_accuracy"])
    start = f"The balanced accuracy on {count(scores[last(report)]['n'])} target images is {after}"
    if not is_adapted(report):
        return f"{start}."
    before = with_interval(scores["source-only"]["balanced_accuracy"])
    return f"{start}, and {before} for the source-only model."


def what_was_done(report: Report) -> str:
    """Say which images were used and what was done with them."""
    run, data = report["run"], report["data"]
    source = f"{count(data['source_train'])} labelled images of the source{_origin(report)}"
    if is_adapted(report):
        return (
            f"The network {run['model']} was trained on {source} and adapted with"
            f" {run['method']} to {count(data['target'])} unlabelled images of the target"
            f"{_patients(report, 'target')}.{_skipped(report)}"
        )
    return (
        f"The network {run['model']} was trained on {source} alone; no adaptation was asked for."
        f" It was then applied to {count(data['target'])} unlabelled images of the target"
        f"{_patients(report, 'target')}.{_skipped(report)}"
    )


def _origin(report: Report) -> str:
    sites = report["data"]["sites"]
    parts = []
    if len(sites) > 1:
        named = [f"{name} {count(n)}" for name, n in list(sites.items())[:4]]
        more = len(sites) - len(named)
        names = listing([*named, f"{more} more"] if more else named)
        parts.append(f"{len(sites)} sites, validation images included: {names}")
    patients = report["data"]["patients"]["source"]
    if patients is not None:
        parts.append(f"{count(patients)} patients, those of validation images included")
    return f" ({'; '.join(parts)})" if parts else ""


def _patients(report: Report, domain: str) -> str:
    patients = report["data"]["patients"][domain]
    return "" if patients is None else f" ({count(patients)} patients)"


def _skipped(report: Report) -> str:
    skipped = report["data"]["skipped_unreadable"]
    if not skipped:
        return ""
    files = "file was" if skipped == 1 else "files were"
    return f" {count(skipped)} unreadable image {files} left out."
