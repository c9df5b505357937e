"""Sentences on a diagnosis, for terminal and page alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daptkit.report.reading.words import between, number, percent

Found = Mapping[str, Any]
"""The content of diagnosis.json."""

FORMAT = 1
"""Raised when the meaning of diagnosis.json changes."""

TITLES = {
    "none": "No shift was found",
    "covariate": "Covariate shift: images of a class look different",
    "label": "Label shift: class frequencies differ",
    "both": "Covariate and label shift",
    "unclear": "It is unclear which shift there is",
}

QUESTIONS = (
    ("domains", "Do the sites differ at all?", "differ", "no difference found"),
    ("prior", "Did class frequencies change?", "changed", "no change found"),
    (
        "moved_prior",
        "Did they, if all predictions may have moved as well?",
        "changed",
        "no change found",
    ),
    (
        "residual",
        "Does anything remain after re-weighting the classes?",
        "remains",
        "nothing found",
    ),
)

ESTIMATES = {
    "atc": "ATC, confidence",
    "atc_entropy": "ATC, entropy",
    "doc": "difference of confidences",
    "prior_weighted_recall": "source recalls, target frequencies",
    "gde": "disagreement of heads",
    "aline": "agreement on the line",
}

STATISTICS = {
    "intensity_mean": "mean intensity",
    "intensity_q05": "intensity, 5th percentile",
    "intensity_q50": "intensity, median",
    "intensity_q95": "intensity, 95th percentile",
    "contrast": "contrast",
    "noise": "noise",
    "sharpness_laplacian": "sharpness (Laplacian)",
    "sharpness_gradient": "sharpness (gradient)",
    "resolution": "resolution",
    "low_frequencies": "share of low frequencies",
    **{
        f"{colour}_{key}": f"{said} {colour}"
        for colour in ("red", "green", "blue")
        for key, said in (("mean", "mean of"), ("spread", "spread of"), ("balance", "balance of"))
    },
    "saturation": "colour saturation",
    "manufacturer": "manufacturer",
    "model": "scanner model",
    "field_strength": "field strength",
}


def subject(run: Found) -> str:
    """Return whose predictions the diagnosis rests on: linear heads, or a model of a run."""
    if run["by"] == "heads":
        weights = "" if run["trained"] else " (random weights)"
        return f"linear heads on {run['model']}{weights} are"
    if run["by"] == "source-only":
        return f"the run's source-only {run['model']} is"
    return f"the run's {run['model']}, adapted by {run['method']}, is"


def whose(run: Found) -> str:
    """Return the same in two words."""
    return "these heads" if run["by"] == "heads" else "this model"


def backbone(run: Found) -> str:
    """Say what the features are of."""
    if run["by"] != "heads":
        return f"{run['by']} model of a run"
    return "frozen backbone" if run["trained"] else "random weights"


def statistic(name: str) -> str:
    """Return the name of an image statistic or covariate."""
    return STATISTICS.get(name, name.replace("_", " "))


PROPERTIES = {
    "intensity": "brightness",
    "shading": "light and shade over large areas",
}


def properties(found: Found) -> list[dict[str, Any]]:
    """Return each property of the images that was measured: answer, effect and methods for it."""
    return [
        {
            "name": PROPERTIES.get(look["name"], look["name"]),
            "differs": look["differs"],
            "statistic": statistic(look["strongest"]["name"]),
            "effect": _signed(look["strongest"]["effect"]),
            "methods": look["methods"],
        }
        for look in found["properties"]
    ]


def p_value(p: float | None) -> str:
    """Write a p value: ``0.013``, or a dash where nothing was tested."""
    if p is None:
        return "–"
    return "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.0995 else f"{p:.2f}"


def questions(found: Found) -> list[dict[str, Any]]:
    """Return question, answer, p value, patients and note of each test that was made."""
    alpha, tests = found["diagnosis"]["alpha"], found["diagnosis"]["tests"]
    rows = []
    for name, question, yes, no in QUESTIONS:
        test = tests.get(name)
        if test is None:
            continue
        answer = "not tested" if test["p"] is None else yes if test["p"] <= alpha else no
        rows.append(
            {
                "question": question,
                "answer": answer,
                "p": p_value(test["p"]),
                "source": test["source_patients"],
                "target": test["target_patients"],
                "note": test["note"],
            }
        )
    return rows


def sizes(found: Found) -> str:
    """Return the effect sizes in one line."""
    d = found["diagnosis"]["divergences"]
    parts = [
        f"proxy A-distance {number(d['proxy_a_distance'])} of 2",
        f"MMD² {number(d['mmd2'], 3)}",
        f"{number(d['mmd2_weighted'], 3)} after re-weighting the classes",
        f"nearest neighbours tell the site in {percent(d['knn_domain_accuracy'], 0)}",
    ]
    return ", ".join(parts)


def frequencies(found: Found) -> str:
    """Return what is known of the target's class frequencies in one sentence."""
    estimate = found["diagnosis"]["target_prior"]
    if estimate is None:
        return "The target's class frequencies were not estimated: too few images."
    change = number(100 * found["diagnosis"]["prior_change"], 0)
    if not estimate["trusted"]:
        trust = f"it is not to be used: {estimate['reasons'][0]}"
    elif found["kind"] in ("covariate", "both"):
        trust = "it takes images of a class to look alike at both sites, which they do not"
    else:
        trust = "nothing speaks against it"
    return (
        f"By the estimate, {change} of 100 cases at the target are of another class than at the"
        f" source; {trust}."
    )


def compared(difference: Mapping[str, Any]) -> str:
    """Write an effect size: ``delta +0.52 (0.41–0.63)`` or ``V 0.81``."""
    effect = difference["effect"]
    if effect is None:
        return "not comparable"
    if difference["kind"] == "category":
        return f"V {number(effect)}"
    return f"{_signed(effect)} ({_signed(difference['low'])} to {_signed(difference['high'])})"


def concept_sentences(found: Found) -> list[str]:
    """Return what the labelled target images say; the statement of the diagnosis without any."""
    labelled = found["target_labels"]
    if labelled is None:
        return [str(found["diagnosis"]["concept"])]
    test = labelled["concept"]
    lines = [
        f"{test['images']} labelled target images of {test['patients']} patients: wrong in"
        f" {percent(test['error'])}, expected from the source {percent(test['expected_error'])}"
        f" (difference {_points(test['disagreement'])})."
    ]
    if test["p"] is None:
        lines.append(f"Concept shift was not tested: {test['note']}.")
    elif test["p"] <= found["diagnosis"]["alpha"]:
        lines.append(
            f"The source's answers do not hold for them (p = {p_value(test['p'])}): labels mean"
            " something else, or the classifier fails on how these images look."
        )
    else:
        lines.append(
            f"No sign that labels mean something else at the target (p = {p_value(test['p'])}),"
            " as far as so few labels can show it."
        )
    return lines


def interval(estimate: Mapping[str, float | None]) -> str:
    """Write a rate with its interval, or a dash."""
    ends = between(estimate)
    value = percent(estimate.get("value"))
    return f"{value} ({ends})" if ends else value


def _points(triple: list[float | None]) -> str:
    value, low, high = triple
    if value is None or low is None or high is None:
        return "–"
    return f"{100 * value:+.0f} points, {100 * low:+.0f} to {100 * high:+.0f}".replace("-", "−")


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")
