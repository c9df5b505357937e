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
"""How far the assumption of an estimate can be believed under a diagnosis.

``HOLDS`` is no promise: nothing that was found contradicts the assumption.
"""

UNDIAGNOSED = "the kind of shift is not known, so nothing says whether the assumption holds"
NO_SHIFT = (
    "no shift was found, so nothing contradicts it; it can still be off, by 2 to 3 points on "
    "average in simulations without any shift and by 10 on chest X-rays where a shift went unseen"
)
ROUGH = 0.05
"""Half-width of an estimate's interval from which on a shift that matters could go unseen."""
UNSEEN = (1.96 + 0.84) / 1.96
"""Drop that a two-sided test at 5% misses one time in five, in half-widths of a 95% interval."""


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
    "none": (
        INDICATIVE,
        "heads that share features and training images share mistakes too and agree on them, so it "
        "is more likely too high than too low: by 5 to 7 points in simulations without any shift",
    ),
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
    "none": (HOLDS, NO_SHIFT),
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
            "label": (
                HOLDS,
                "only class frequencies were found to have changed, which this estimate accounts "
                "for; it is off where images of one class changed unseen",
            ),
            "covariate": (FAILS, "images of one class changed, so recalls are not the source's"),
            "both": (FAILS, "images of one class changed, so recalls are not the source's"),
        },
    ),
    "gde": Assumption(
        "the votes of independently trained heads are calibrated on the target, which cannot be "
        "checked there; it is the accuracy of one head",
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


def as_far_as_seen(level: str, note: str, half_width: float) -> tuple[str, str]:
    """Return level and note of an estimate, one level lower where few patients could hide a shift.

    That no contradiction was found says little where none could be: a test of accuracy itself, with
    labels, that is as sharp as the estimate's interval misses a drop of 1.43 half-widths one time
    in five (two-sided at 5%), and tests without labels are no sharper.

    Args:
        level: of :func:`reliability`.
        note: of the same.
        half_width: of the estimate's 95% interval; infinite where a single patient allows none.
    """
    if level != HOLDS or half_width < ROUGH:
        return level, note
    if not half_width < 1.0 / UNSEEN:
        return INDICATIVE, f"{note}; so few patients show no shift of any size"
    drop = round(100 * UNSEEN * half_width)
    return INDICATIVE, (
        f"{note}; among so few patients a drop of {drop} points could go unseen even with labels"
    )
