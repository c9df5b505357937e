"""Did adapting help? The verdict, why, and what estimates without labels say."""

from __future__ import annotations

from typing import Any

from daptkit.assess.summary import VERDICTS, delivered_text
from daptkit.report.reading.words import Report

ESTIMATORS = {
    "atc": "Images above a confidence threshold (ATC)",
    "atc_entropy": "Images below an entropy threshold (ATC)",
    "doc": "Fall of mean confidence (DoC)",
    "prior_weighted_recall": "Source recalls under the target’s class frequencies",
    "gde": "Agreement of heads trained apart",
}
"""Estimators of run.json to what they are called."""


def answer(report: Report) -> str:
    """Return the verdict and what was delivered, in two sentences; empty without a verdict."""
    verdict = report.get("verdict")
    if verdict is None:
        return ""
    said = VERDICTS[verdict["verdict"]]
    return f"{said[0].upper()}{said[1:]}. {_sentence(delivered_text(verdict))}"


def reasons(report: Report) -> list[str]:
    """Return why, one sentence each."""
    return [_sentence(reason) for reason in report["verdict"]["reasons"]]


def shift(report: Report) -> list[str]:
    """Return what the tests of the shift said, and with which caveats."""
    found = report["verdict"]["shift"]
    return [*found["reasons"], *found["caveats"]]


def estimates(report: Report) -> list[dict[str, Any]]:
    """Return a row for each estimator that both models have: name, values, assumption, how sure."""
    of = report["verdict"]["estimates"]
    named = {model: {row["name"]: row for row in rows} for model, rows in of.items()}
    shared = [name for name in ESTIMATORS if all(name in rows for rows in named.values())]
    return [
        {
            "name": ESTIMATORS[name],
            "values": {m: rows[name]["estimated_accuracy"] for m, rows in named.items()},
            "assumption": _sentence(of_one["assumption"]),
            "reliability": of_one["reliability"],
            "note": _sentence(of_one["note"]),
        }
        for name in shared
        for of_one in [named[report["models"][-1]][name]]
    ]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
