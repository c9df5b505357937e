"""Did adapting help? A verdict from evidence that needs no target labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.assess.accuracy.agreement import Agreement, chance_corrected
from daptkit.assess.accuracy.estimates import Draws, estimate_draws
from daptkit.assess.accuracy.sample import Sample, as_heads
from daptkit.assess.evidence import (
    Counted,
    VerdictLimits,
    count_differences,
    difference_text,
    doubts,
    harm,
    paired_differences,
    renamed,
    source_loss,
    unasked_text,
    unknowable,
    upheaval,
)
from daptkit.assess.identity import beyond_prior
from daptkit.assess.intervals import Estimate
from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray

HELPED, NO_EVIDENCE, HURT, CANNOT_KNOW = "helped", "no evidence", "hurt", "can't know"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict and what it rests on.

    Args:
        verdict: ``"helped"``, ``"no evidence"``, ``"hurt"`` or ``"can't know"``.
        deliver: ``"adapted"``, or ``"source-only"`` where adapting hurt, or as a precaution.
        reasons: sentences, those that decided first.
        differences: estimator to the difference of estimated accuracy, adapted - source-only, with
            a paired 95% interval.
        counted: estimators that were asked for the verdict.
        source_loss: balanced accuracy lost on held-out source images, with a paired interval.
        heads_kappa: agreement of the source-only heads on the target, ``None`` without heads.
        stability: agreement of the alternative adapted models, ``None`` without them.
        beyond_prior: how far the implied prior lies outside the trusted interval, or ``None``.
        changed: share of target images whose class adapting changed.
    """

    verdict: str
    deliver: str
    reasons: tuple[str, ...]
    differences: dict[str, Estimate]
    counted: tuple[str, ...]
    source_loss: Estimate
    heads_kappa: float | None
    stability: float | None
    beyond_prior: float | None
    changed: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "verdict": self.verdict,
            "deliver": self.deliver,
            "reasons": list(self.reasons),
            "estimated_differences": {k: dict(v) for k, v in self.differences.items()},
            "counted": list(self.counted),
            "source_loss": dict(self.source_loss),
            "heads_kappa": self.heads_kappa,
            "stability": self.stability,
            "beyond_prior": self.beyond_prior,
            "changed": self.changed,
        }


def judge(
    twin: Sample,
    adapted: Sample,
    *,
    kind: str | None = None,
    twin_heads: npt.ArrayLike | None = None,
    adapted_heads: npt.ArrayLike | None = None,
    prior_low: FloatArray | None = None,
    prior_high: FloatArray | None = None,
    feature_gap: float | None = None,
    raises_confidence: bool = False,
    classes: tuple[str, ...] | None = None,
    limits: VerdictLimits | None = None,
    n_bootstrap: int = 500,
    seed: int = 0,
    drawn: tuple[Draws, Draws] | None = None,
) -> Verdict:
    """Judge whether the adapted model serves the target better than its source-only twin.

    No target label is read. In this order:

    1. *hurt*: the adapted model collapsed (and the twin did not), or lost more than 0.1 of balanced
       accuracy at the source (whole interval).
    2. *can't know*: the twin is near chance on the target as far as can be known (its heads agree
       by chance; every confidence estimate's interval reaches chance; or the features' gap is
       large). Clusters may then be found and named wrongly, and no figure would show it, so the
       source-only model is delivered as a precaution.
    3. *hurt*: classes carry other names than the twin's, or estimated accuracy falls.
    4. *helped*: estimated accuracy rises, and nothing speaks against it: the predicted frequencies
       fit the estimated prior (without one, the classes are as many as the twin's), alternative
       adapted models agree.
    5. *no evidence* otherwise. More images may change class than the twin has wrong by its lowest
       estimate: then the source-only model is delivered as a precaution.

    Which estimates are asked, and how many must agree, follows from the diagnosis:
    :func:`daptkit.assess.evidence.count_differences`. Differences are paired, and bounded by the
    share of images whose class changed.

    Args:
        twin: the source-only model.
        adapted: the adapted model, on the same images.
        kind: diagnosed kind of shift, or ``None``.
        twin_heads: (H, M) classes by independently trained source-only heads on the target.
        adapted_heads: (A, M) classes by alternative adapted models (heads, seeds).
        prior_low: (K,) lower ends of a trusted estimate of the target's prior.
        prior_high: (K,) upper ends.
        feature_gap: :func:`daptkit.shift.feature_gap` of the twin's features; ``None`` or NaN if
            not measured.
        raises_confidence: the method's loss raises confidence on the target (entropy, MCC, BNM):
            estimates by confidence are not asked, which the reasons say where it decides.
        classes: names, for the sentences.
        limits: see :class:`VerdictLimits`.
        n_bootstrap: paired resamples of patients of both domains.
        seed: of the resampling.
        drawn: what :func:`daptkit.assess.accuracy.estimate_draws` has made of both models with the
            same heads, number of resamples and seed, not to be made again.

    Reference: Garg et al. 2022, arXiv:2201.04234; Jiang et al. 2022, arXiv:2106.13799; Wang et al.
    2019, arXiv:1811.09751 (negative transfer).

    Raises:
        DataError: the samples are not of the same images, or heads of wrong shape.
        UsageError: unknown kind.
    """
    limit = limits or VerdictLimits()
    _check_pair(twin, adapted)
    k, m = twin.num_classes, len(twin.target_posterior)
    names = classes or tuple(str(i) for i in range(k))
    agreed = _kappa(twin_heads, m, k, "source-only heads")
    stability = _kappa(adapted_heads, m, k, "adapted heads")
    # The difference of two agreements needs heads of both models.
    both = agreed is not None and stability is not None
    before, after = drawn or (
        estimate_draws(
            sample, target_heads=heads if both else None, n_bootstrap=n_bootstrap, seed=seed
        )
        for sample, heads in ((twin, twin_heads), (adapted, adapted_heads))
    )
    changed = float((twin.target_predicted != adapted.target_predicted).mean())
    differences = paired_differences(before, after, changed)
    counted = count_differences(differences, kind, raises_confidence)
    loss = source_loss(twin, adapted, n_bootstrap, seed)
    outside = None
    if prior_low is not None and prior_high is not None:
        outside = beyond_prior(
            adapted.source_shared, adapted.labels, adapted.target_shared, prior_low, prior_high
        )
    harmed = harm(twin, adapted, loss, prior_high, limit, names)
    unknown = unknowable(twin, before, agreed, feature_gap, outside is not None, limit)
    other_names = renamed(twin, adapted, names)
    doubted = doubts(twin, adapted, stability, outside, limit)

    def said_by(counted: Counted) -> tuple[str, list[str]]:
        against = list(other_names)
        if counted.down and not counted.up:
            against.append(difference_text(counted.down, differences))
        if harmed:
            return HURT, harmed
        if unknown:
            return CANNOT_KNOW, unknown
        if against:
            return HURT, against
        if counted.up and not counted.down and not doubted:
            return HELPED, [difference_text(counted.up, differences)]
        return NO_EVIDENCE, _why_none(counted, doubted)

    verdict, reasons = said_by(counted)
    if raises_confidence:
        otherwise, _ = said_by(count_differences(differences, kind, False))
        if otherwise != verdict:
            reasons = [*reasons, unasked_text(otherwise)]
    careful: list[str] = []
    if verdict == NO_EVIDENCE:
        # The method did not train the source-only model's confidence, so all of it is asked.
        careful = upheaval(before, changed, count_differences(differences, kind, False).names)
    return Verdict(
        verdict=verdict,
        deliver="source-only" if verdict in (HURT, CANNOT_KNOW) or careful else "adapted",
        reasons=(*reasons, *careful),
        differences=differences,
        counted=counted.names,
        source_loss=loss,
        heads_kappa=agreed,
        stability=stability,
        beyond_prior=outside,
        changed=changed,
    )


def _check_pair(twin: Sample, adapted: Sample) -> None:
    same = (
        twin.source_posterior.shape == adapted.source_posterior.shape
        and twin.target_posterior.shape == adapted.target_posterior.shape
        and np.array_equal(twin.labels, adapted.labels)
        and np.array_equal(twin.source_groups, adapted.source_groups)
        and np.array_equal(twin.target_groups, adapted.target_groups)
    )
    if not same:
        raise DataError("the adapted and the source-only model were not run on the same images.")


def _kappa(heads: npt.ArrayLike | None, n: int, num_classes: int, name: str) -> float | None:
    if heads is None:
        return None
    classes = as_heads(heads, n, num_classes, name)
    if len(classes) < 2:
        raise DataError(f"{name}: agreement needs at least 2 of them.")
    return chance_corrected(Agreement.of(classes, num_classes), np.ones(n))


def _why_none(counted: Counted, doubted: list[str]) -> list[str]:
    if doubted:
        return doubted
    if counted.up and counted.down:
        up, down = ", ".join(counted.up), ", ".join(counted.down)
        return [f"estimates contradict each other: {up} rise, {down} fall"]
    if counted.names:
        return ["estimated accuracy on the target changes by no more than chance or doubt allows"]
    return ["no estimate's assumption is left to rest a verdict on"]
