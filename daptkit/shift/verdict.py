"""The three questions' tests turned into a kind of shift, and the sentences that go with it."""

from __future__ import annotations

from collections.abc import Sequence

from daptkit.shift.labelshift import PriorEstimate
from daptkit.shift.twosample import ShiftTest

KINDS = ("none", "covariate", "label", "both", "unclear")
FEW_PATIENTS = 50
SMALL_DISTANCE = 0.2
"""Proxy A-distance below which a shift that is there is called small: 5 points above chance."""


def kind_of_shift(
    domains: ShiftTest,
    prior: ShiftTest,
    residual: ShiftTest,
    alpha: float,
    moved: ShiftTest | None = None,
) -> tuple[str, tuple[str, ...]]:
    """Return one of :data:`KINDS` and a sentence for each answer.

    (1) The sites differ if 3 times the smallest of the three p values is at most alpha (Bonferroni:
    the other two tests find what a test of all features overlooks). Only then: (2) the prior has
    changed if its p <= alpha, (3) something remains if the residual's p <= alpha. 2 alone: label;
    3 alone: covariate; both: both; neither: unclear. Where something remains, the mean prediction
    may have changed for that reason alone: 2 then also needs the p of ``moved``, which allows for a
    common move of all logits, to be at most alpha, if it was tested.

    Each true hypothesis is rejected with a chance of at most alpha, whichever of them are true: if
    neither the prior nor the appearance changed, the first step is passed with chance alpha; if
    just one did, only the other can be claimed wrongly, by its own test.

    Reference: Maurer, Hothorn, Lehmacher 1995 (fixed-sequence tests); Lipton, Wang, Smola 2018,
    arXiv:1802.03916; Rabanser, Guennemann, Lipton 2019, arXiv:1810.11953.
    """
    if not domains.tested:
        return "unclear", (f"The sites cannot be compared: {domains.note}.",)
    p = any_shift_p(domains, prior, residual)
    if p > alpha:
        return "none", (f"No difference between the sites was found (p = {p:.3g}).",)
    sentences = [f"The sites differ (p = {p:.3g})."]
    for test, yes, no, unknown in (
        (
            prior,
            "The classifier's mean prediction changed, as it does when class frequencies change",
            "No change of class frequencies was found",
            "Whether class frequencies changed cannot be tested",
        ),
        (
            residual,
            "Images of one class look different: the sites differ after re-weighting the classes",
            "Nothing remains after re-weighting the source's classes",
            "What remains after re-weighting the classes cannot be tested",
        ),
    ):
        if not test.tested:
            sentences.append(f"{unknown}: {test.note}.")
        else:
            sentences.append(f"{yes if test.p <= alpha else no} (p = {test.p:.3g}).")
    if not (prior.tested and residual.tested):
        return "unclear", tuple(sentences)
    changed, remains = prior.p <= alpha, residual.p <= alpha
    if changed and remains and moved is not None and moved.tested:
        changed = moved.p <= alpha
        text = "does not explain" if changed else "may be all that is behind"
        sentences.append(
            f"A common move of all predictions {text} the changed mean (p = {moved.p:.3g})."
        )
    kinds = {(True, True): "both", (True, False): "label", (False, True): "covariate"}
    kind = kinds.get((changed, remains), "unclear")
    if kind == "unclear":
        sentences.append("Neither explains the difference; more patients may.")
    return kind, tuple(sentences)


def any_shift_p(*tests: ShiftTest) -> float:
    """Return min(1, k min p) over the k tests that were made, NaN without any."""
    known = [test.p for test in tests if test.tested]
    return min(1.0, len(known) * min(known)) if known else float("nan")


def caveats(
    kind: str,
    tests: Sequence[ShiftTest],
    estimate: PriorEstimate | None,
    distance: float,
    patients_known: bool,
) -> tuple[str, ...]:
    """Return what a reader of the answer has to know, one sentence each."""
    domains, prior, residual = tests
    said: list[str] = []
    if not patients_known:
        said.append(
            "Without patient ids every image counts as a patient; several images of a patient then "
            "make sites look different that are not."
        )
    fewest = min(domains.source_patients, domains.target_patients)
    if fewest < FEW_PATIENTS:
        said.append(f"With {fewest} patients at one site only large shifts can be found.")
    if kind == "none":
        said.append("That no shift was found does not show that there is none.")
    if kind in ("covariate", "label", "both") and distance < SMALL_DISTANCE:
        said.append(
            f"The shift is small (proxy A-distance {distance:.2f} of 2): with many patients even "
            "one that does no harm is found."
        )
    if kind == "label":
        said.append(
            "That images of one class look alike at both sites was not refuted, which is not proof."
        )
    if kind == "both":
        said.append(
            "Where images of a class look different, the change of class frequencies is not sure: "
            "a change of appearance that moves images of classes differently can look the same."
        )
    if estimate is not None and not estimate.trusted and kind in ("label", "both"):
        said.append(
            "The target's class frequencies are not to be used: " + estimate.reasons[0] + "."
        )
    for name, test in (("sites", domains), ("class frequencies", prior), ("residual", residual)):
        if test.tested and test.note:
            said.append(f"Test of the {name}: {test.note}.")
    return tuple(said)
