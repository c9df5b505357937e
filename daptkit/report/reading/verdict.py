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
    """Return a row for each estimator that the run's models have: name, values, assumption."""
    of = report["verdict"]["estimates"]
    named = {model: {row["name"]: row for row in rows} for model, rows in of.items()}
    shared = [name for name in ESTIMATORS if all(name in named[m] for m in report["models"])]
    return [
        {
            "name": ESTIMATORS[name],
            # The baseline from random weights may lack what the others have.
            "values": {
                m: rows[name]["estimated_accuracy"] if name in rows else {"value": None}
                for m, rows in named.items()
            },
            "assumption": _sentence(of_one["assumption"]),
            "reliability": of_one["reliability"],
            "note": _sentence(of_one["note"]),
        }
        for name in shared
        for of_one in [named[report["models"][-1]][name]]
    ]


def estimated_models(report: Report) -> list[str]:
    """Return the models that estimates are shown of; the one from random weights, if any, first."""
    of = report["verdict"]["estimates"]
    return [*(name for name in of if name not in report["models"]), *report["models"]]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"
