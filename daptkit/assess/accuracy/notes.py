"""What each estimate assumes, and what a diagnosis of the shift says of that."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.errors import UsageError, did_you_mean

KINDS = ("none", "covariate", "label", "both", "unclear")

HOLDS, INDICATIVE, DOUBTFUL, FAILS, UNKNOWN = (
    "holds",
    "indicative",
    "doubtful",
    "fails",
    "unknown",
)
"""How far the assumption of an estimate can be believed under a diagnosis."""

UNDIAGNOSED = "the kind of shift is not known, so nothing says whether the assumption holds"
NO_SHIFT = "no shift was found, so the estimate should hold like a score on held-out source images"


@dataclass(frozen=True)
class Assumption:
    """Words for one estimate.

    Args:
        text: what is assumed.
        reference: the paper.
        under: kind of shift to (reliability, one sentence why).
    """

    text: str
    reference: str
    under: dict[str, tuple[str, str]]


_CONFIDENCE = {
    "none": (HOLDS, NO_SHIFT),
    "covariate": (
        INDICATIVE,
        "confidence often follows accuracy under a mild shift of the images, but a model can be "
        "confident and wrong on a site that looks different",
    ),
    "label": (
        DOUBTFUL,
        "classes became rarer or more frequent, which moves confidence and accuracy by different "
        "amounts unless the prior was corrected",
    ),
    "both": (
        DOUBTFUL,
        "class frequencies and images both changed, and confidence need not follow accuracy",
    ),
}
_HEADS = {
    "none": (HOLDS, NO_SHIFT),
    "covariate": (
        INDICATIVE,
        "heads that disagree are often wrong, but heads that share a mistake agree on it",
    ),
    "label": (
        INDICATIVE,
        "agreement follows the new class frequencies, as far as the heads' votes stay calibrated "
        "under them",
    ),
    "both": (DOUBTFUL, "heads trained on one source can agree on the same mistake"),
}
_LINE = {
    **_HEADS,
    "label": (DOUBTFUL, "the line was observed under shifts of images, not of classes"),
}

ASSUMPTIONS = {
    "atc": Assumption(
        "an image is right as often above the confidence threshold as on the source",
        "arXiv:2201.04234",
        _CONFIDENCE,
    ),
    "atc_entropy": Assumption(
        "an image is right as often below the entropy threshold as on the source",
        "arXiv:2201.04234",
        _CONFIDENCE,
    ),
    "doc": Assumption(
        "accuracy falls by as much as mean confidence does", "arXiv:2107.03315", _CONFIDENCE
    ),
    "prior_weighted_recall": Assumption(
        "only class frequencies changed: images of one class are alike at both sites (label shift)",
        "arXiv:1802.03916",
        {
            "none": (HOLDS, NO_SHIFT),
            "label": (HOLDS, "only class frequencies changed, which this estimate accounts for"),
            "covariate": (FAILS, "images of one class changed, so recalls are not the source's"),
            "both": (FAILS, "images of one class changed, so recalls are not the source's"),
        },
    ),
    "gde": Assumption(
        "the votes of independently trained heads are calibrated on the target; it is the "
        "accuracy of one head",
        "arXiv:2106.13799",
        _HEADS,
    ),
    "aline": Assumption(
        "accuracy of heads follows the same line from source to target as their agreement; it is "
        "the accuracy of one head",
        "arXiv:2206.13089",
        _LINE,
    ),
}


def reliability(name: str, kind: str | None) -> tuple[str, str]:
    """Return how far an estimate can be believed and one sentence why.

    Args:
        name: a key of :data:`ASSUMPTIONS`.
        kind: diagnosed kind of shift, one of :data:`KINDS`, or ``None`` without a diagnosis.

    Raises:
        UsageError: unknown kind.
    """
    if kind is not None and kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise UsageError(f"the kind of shift is one of {', '.join(KINDS)}, not {kind!r}.{hint}")
    found = ASSUMPTIONS[name].under.get(kind or "unclear")
    return found if found is not None else (UNKNOWN, UNDIAGNOSED)
