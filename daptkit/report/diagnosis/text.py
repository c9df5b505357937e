"""The summary of a diagnosis for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from daptkit.report.diagnosis import words
from daptkit.report.diagnosis.words import Found
from daptkit.report.reading.words import RELIABILITY

_WIDTH = 100
_DIFFERENCES = 6


def summary_text(found: Found) -> str:
    """Return kind, tests, effect sizes, recommendation, estimates and caveats as text.

    Args:
        found: content of diagnosis.json.
    """
    data, recommended = found["data"], found["recommendation"]
    lines = [
        words.TITLES[found["kind"]],
        "",
        *(_site(name, data[name]) for name in ("source", "target")),
        f"{words.subject(found['run'])} right on"
        f" {100 * found['run']['source_accuracy']:.1f}% of held-out source images",
        "",
        *_questions(found),
        *_wrapped(f"Sizes: {words.sizes(found)}."),
        *_wrapped(words.frequencies(found)),
        *_wrapped(found["diagnosis"]["level"]),
        "",
        *_appearance(found),
        *_properties(found),
        f"Recommended: -m {recommended['methods']}",
        *_wrapped(recommended["reason"], "  "),
    ]
    if recommended["alternatives"]:
        lines.extend(_wrapped(f"Others: {', '.join(recommended['alternatives'])}", "  "))
    lines += ["", *_estimates(found)]
    bound = (found["target_labels"] or found)["bound"]
    lines += ["Bound on the errors at the target", *_items(bound["text"])]
    lines += ["", "Concept shift", *_items(words.concept_sentences(found))]
    if found["caveats"]:
        lines += ["", "Caveats", *_items(found["caveats"])]
    return "\n".join(lines)


def _site(name: str, facts: Found) -> str:
    drawn = "" if facts["tested"] == facts["images"] else f", {facts['tested']} of them tested"
    unit = "patients" if facts["patients_known"] else "images taken for patients"
    return f"{name}: {facts['images']} images, {facts['patients']} {unit}{drawn}"


def _questions(found: Found) -> list[str]:
    rows = words.questions(found)
    width = max(len(row["question"]) for row in rows)
    lines = []
    for row in rows:
        note = f" ({row['note']})" if row["answer"] == "not tested" else ""
        lines.append(f"{row['question'].ljust(width)}  p = {row['p']:<6}  {row['answer']}{note}")
    return lines


def _appearance(found: Found) -> list[str]:
    every = found["diagnosis"]["appearance"]
    alpha = found["diagnosis"]["alpha"]
    shown = [d for d in every if d["p_adjusted"] is not None and d["p_adjusted"] <= alpha]
    if not every:
        return []
    if not shown:
        return ["No image statistic differs beyond chance.", ""]
    head = "What looks different (Cliff's delta, 95% interval; above 0: larger at the target)"
    names = [words.statistic(d["name"]) for d in shown[:_DIFFERENCES]]
    width = max(map(len, names))
    lines = [
        f"  {name.ljust(width)}  {words.compared(d)}"
        for name, d in zip(names, shown[:_DIFFERENCES], strict=True)
    ]
    more = len(shown) - _DIFFERENCES
    return [head, *lines, *([f"  and {more} more"] if more > 0 else []), ""]


def _properties(found: Found) -> list[str]:
    rows = words.properties(found)
    if not any(row["differs"] for row in rows):
        return []
    lines = [
        "Properties of the images that differ, and installed methods that say they are for them"
    ]
    for row in rows:
        if row["differs"]:
            methods = ", ".join(row["methods"]) or "no installed method"
            lines += _wrapped(f"{row['name']}: {methods}", "  ")
    alike = [row["name"] for row in rows if not row["differs"]]
    return [*lines, *([f"  no difference found in {', '.join(alike)}"] if alike else []), ""]


def _estimates(found: Found) -> list[str]:
    rows = found["accuracy_estimates"]
    if not rows:
        return []
    lines = [
        f"Accuracy of {words.whose(found['run'])} at the target, each only under its assumption"
    ]
    for row in rows:
        value = words.interval(row["estimated_accuracy"])
        lines += [
            f"  {value.ljust(22)} {words.ESTIMATES.get(row['name'], row['name'])}:"
            f" {RELIABILITY[row['reliability']]}",
            *_wrapped(f"if {row['assumption']}", "      "),
        ]
    return [*lines, *_wrapped(found["agreeing_heads"]["note"], "  "), ""]


def _items(sentences: Sequence[str]) -> list[str]:
    return [line for s in sentences for line in _wrapped(s, "  ")]


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
