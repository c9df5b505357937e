"""What a series of training, or a number in a method's report, is called on the page."""

from __future__ import annotations

_SERIES = {
    "lr": "Learning rate",
    "classification": "Classification loss",
    "source_accuracy": "Source training accuracy",
    "source_val_loss": "Source validation loss",
    "source_val_accuracy": "Source validation accuracy",
    "score/im": "Score: information maximisation",
    "score/entropy": "Score: entropy",
    "score/snd": "Score: soft neighbourhood density",
    "score/bnm": "Score: nuclear norm",
    "score/iwcv": "Score: importance-weighted risk",
    "score/atc": "Score: thresholded confidence",
}

_WORDS = {
    "agreement": "disagreement of two estimators (0: none)",
    "condition": "condition of the confusion matrix (0: useless, 1: best)",
    "ess": "effective sample size",
    "estimate": "estimated target frequencies",
    "feature gap": "gap of features that frequencies do not explain",
    "high": "estimate, upper end of 95%",
    "low": "estimate, lower end of 95%",
    "prior": "target frequencies in use",
    "residual": "predictions that frequencies do not explain",
    "source prior": "source frequencies",
    "trusted": "estimate trusted (1: yes, 0: no)",
}
"""Names under which label-shift estimates are logged, told in words."""

MEANINGS = {
    "ess": "How many source images would say as much without class weights.",
    "trusted": "Whether the estimate of the target’s class frequencies passed its checks.",
    "agreement": "Two ways of estimating the target’s class frequencies, compared.",
    "feature_gap": "Distance of the sites that class frequencies do not explain, against that"
    " between classes: high values speak against a mere shift of frequencies.",
}
"""One sentence on a logged value, by its name without the method."""

SCORES = {
    "score/im": "Sure predictions of equally frequent classes; higher is better, if they are.",
    "score/entropy": "How unsure the target’s predictions are; lower is better. Collapse and"
    " over-confidence lower it too.",
    "score/snd": "How densely the target’s predictions lie; higher is better, and highest where the"
    " model collapsed.",
    "score/bnm": "Sure and evenly spread predictions; higher is better, if classes are so.",
    "score/iwcv": "Errors on held-out source images, weighted by how like the target’s they are;"
    " lower is better.",
    "score/atc": "Share of the target above the source’s threshold of confidence; higher is better."
    " Over-confidence raises it too.",
}
"""One sentence on each score of an epoch, none of which reads a target label."""


def series_title(key: str, kind: str) -> str:
    """Return the title of a series of training.

    Args:
        key: its name in report.json, such as ``"dann/domain"``.
        kind: ``lr``, ``losses``, ``logged`` or ``epoch``.
    """
    method, slash, name = key.partition("/")
    if key in _SERIES or not slash:
        return _SERIES.get(key, key.replace("_", " "))
    return f"{method}: {in_words(name)}" + (" loss" if kind == "losses" else "")


def in_words(name: str) -> str:
    """Return the name of a number as people say it; an unknown one without underscores."""
    words = name.replace("_", " ")
    return _WORDS.get(words, words)
