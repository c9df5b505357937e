"""Choosing among candidates without target labels: vetoes first, then a weighted median rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata

from daptkit.assess.accuracy.notes import reliability
from daptkit.assess.identity import (
    MIN_BREADTH,
    beyond_prior,
    breadth,
    chance_corrected_agreement,
    swapped_classes,
    unexplained_collapse,
)
from daptkit.assess.scores.batch_nuclear_norm import batch_nuclear_norm
from daptkit.assess.scores.importance_weighted_risk import importance_weighted_risk
from daptkit.assess.scores.information_maximisation import information_maximisation
from daptkit.assess.scores.inputs import ScoreInputs
from daptkit.assess.scores.mean_entropy import mean_entropy
from daptkit.assess.scores.soft_neighbourhood_density import soft_neighbourhood_density
from daptkit.assess.scores.thresholded_confidence import thresholded_confidence
from daptkit.assess.summary import validation_score
from daptkit.errors import UsageError
from daptkit.shift.arrays import FloatArray

Score = Callable[[ScoreInputs], float]

SCORES: dict[str, tuple[Score, bool]] = {
    "im": (information_maximisation, True),
    "entropy": (mean_entropy, False),
    "snd": (soft_neighbourhood_density, True),
    "bnm": (batch_nuclear_norm, True),
    "iwcv": (importance_weighted_risk, False),
    "atc": (thresholded_confidence, True),
}
"""Name to (function, whether higher is better)."""

MAX_SOURCE_LOSS = 0.1
"""Balanced accuracy at the source that a candidate may lose against the reference."""
MIN_KAPPA = 0.05
"""Chance-corrected agreement with the reference below which class names are not known."""
MAX_BEYOND_PRIOR = 0.3
"""L1 distance that the implied prior may lie outside the interval of a trusted estimate."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What was chosen and why.

    Args:
        chosen: name of the candidate, ``None`` where every one was vetoed.
        order: candidates without veto, best first.
        median_rank: name to weighted median rank, 1 the best, of those.
        scores: name to score to value, of all candidates; NaN where not defined.
        vetoes: name to sentences, of those that were vetoed.
        weights: score to its weight in the median.
    """

    chosen: str | None
    order: tuple[str, ...]
    median_rank: dict[str, float]
    scores: dict[str, dict[str, float]]
    vetoes: dict[str, tuple[str, ...]]
    weights: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, NaN as ``None``."""
        return {
            "chosen": self.chosen,
            "order": list(self.order),
            "median_rank": dict(self.median_rank),
            "scores": {
                name: {score: value if np.isfinite(value) else None for score, value in row.items()}
                for name, row in self.scores.items()
            },
            "vetoes": {name: list(reasons) for name, reasons in self.vetoes.items()},
            "weights": dict(self.weights),
        }


def score_weights(
    kind: str | None, prior_known: bool, raises_confidence: bool = False
) -> dict[str, float]:
    """Return the weight of each score under a diagnosis.

    Three families count alike, since scores of one family are fooled together: sureness (ATC one
    half, entropy and SND one quarter each), an even split (IM and BNM, one half each), and the
    weighted error at the source (IWCV). An even split counts only where the class frequencies are
    known to be the source's ("none", "covariate"); IM also where it compares with a trusted prior.
    Where a candidate was trained to be sure of the target, scores of the target's predictions say
    how well that went, and not how right it is: only the weighted error at the source counts.

    Args:
        kind: ``"none"``, ``"covariate"``, ``"label"``, ``"both"``, ``"unclear"`` or ``None``.
        prior_known: whether IM compares with a trusted prior.
        raises_confidence: whether the loss of a candidate's method raises confidence on the target.

    Raises:
        UsageError: unknown kind.
    """
    reliability("atc", kind)
    if raises_confidence:
        return {name: float(name == "iwcv") for name in SCORES}
    even = 0.5 if kind in ("none", "covariate") else 0.0
    return {
        "im": 1.0 - even if prior_known else even,
        "entropy": 0.25,
        "snd": 0.25,
        "bnm": even,
        "iwcv": 1.0,
        "atc": 0.5,
    }


def select(
    candidates: Mapping[str, ScoreInputs],
    reference: ScoreInputs,
    *,
    kind: str | None = None,
    prior_low: FloatArray | None = None,
    prior_high: FloatArray | None = None,
    raises_confidence: bool = False,
) -> Selection:
    """Choose one of several checkpoints or methods without target labels.

    Single scores are fooled: collapse to one class has the best SND and entropy, an even split the
    best IM and BNM, and swapped names cost no score anything. So a candidate is vetoed where

    - one class takes more than 95% of the target, or the classes spread over less than 0.6 of the
      reference's breadth, and the prior's interval does not allow it;
    - it loses more than 0.1 of the reference's balanced accuracy on held-out source images;
    - its classes carry other names than the reference's, or agree with them by no more than chance
      (kappa below 0.05);
    - the prior that it implies is more than 0.3 (L1) outside the interval of a trusted estimate.

    The others are ranked by every score (ties share their mean rank, a score that is not defined
    ranks last) and ordered by weighted median rank, then weighted mean rank, then the balanced
    accuracy at the source, then their order in ``candidates``.

    Args:
        candidates: name to inputs; at least one. All on the same images.
        reference: the source-only model on the same images. Where it is no better than chance on
            the target, class names are not identifiable and no choice can be right.
        kind: diagnosed kind of shift, see :func:`score_weights`.
        prior_low: (K,) lower ends of a trusted estimate of the target's prior; only with
            ``prior_high``.
        prior_high: (K,) upper ends.
        raises_confidence: see :func:`score_weights`.

    Raises:
        UsageError: no candidate, or an unknown kind.
    """
    if not candidates:
        raise UsageError("there is no candidate to choose from.")
    names = list(candidates)
    known = all(inputs.target_prior is not None for inputs in candidates.values())
    return choose(
        {name: score_values(candidates[name]) for name in names},
        {name: veto(candidates[name], reference, prior_low, prior_high) for name in names},
        {name: source_accuracy(candidates[name]) for name in names},
        score_weights(kind, known, raises_confidence),
    )


def score_values(inputs: ScoreInputs) -> dict[str, float]:
    """Return every score of a candidate, NaN where it is not defined."""
    return {score: function(inputs) for score, (function, _) in SCORES.items()}


def source_accuracy(inputs: ScoreInputs) -> float:
    """Return the balanced accuracy of a candidate on held-out source images, in [0, 1]."""
    predicted = inputs.source_posterior.argmax(axis=1)
    return validation_score(predicted, inputs.source_labels).balanced_accuracy


def choose(
    scores: Mapping[str, Mapping[str, float]],
    vetoes: Mapping[str, Sequence[str]],
    source: Mapping[str, float],
    weights: Mapping[str, float],
) -> Selection:
    """Choose among candidates whose scores and vetoes are known already; see :func:`select`.

    Args:
        scores: candidate to :func:`score_values`.
        vetoes: candidate to the sentences of :func:`veto`, empty where there is none.
        source: candidate to :func:`source_accuracy`.
        weights: :func:`score_weights`.
    """
    left = [name for name in scores if not vetoes[name]]
    ranks = _ranks([scores[name] for name in left])
    columns = [s for s in SCORES if s in ranks and weights[s] > 0]
    weight = np.array([weights[s] for s in columns])
    table = np.array([ranks[s] for s in columns]).reshape(len(columns), len(left))
    # Without any score that counts, the source's accuracy decides alone.
    median = [_weighted_median(table[:, i], weight) if columns else 0.0 for i in range(len(left))]
    mean = weight @ table / weight.sum() if columns else np.zeros(len(left))
    order = sorted(
        range(len(left)),
        key=lambda i: (median[i], round(float(mean[i]), 9), -source[left[i]], i),
    )
    return Selection(
        chosen=left[order[0]] if order else None,
        order=tuple(left[i] for i in order),
        median_rank={left[i]: median[i] for i in order},
        scores={name: dict(row) for name, row in scores.items()},
        vetoes={name: tuple(reasons) for name, reasons in vetoes.items() if reasons},
        weights=dict(weights),
    )


def veto(
    candidate: ScoreInputs,
    reference: ScoreInputs,
    prior_low: FloatArray | None = None,
    prior_high: FloatArray | None = None,
) -> tuple[str, ...]:
    """Return one sentence for each reason against a candidate; see :func:`select`."""
    k = candidate.num_classes
    predicted, expected = candidate.target_predicted, reference.target_predicted
    reasons = []
    if unexplained_collapse(predicted, k, prior_high) is not None:
        reasons.append("nearly every target image gets the same class")
    elif prior_high is None and breadth(predicted, k) < MIN_BREADTH * breadth(expected, k):
        reasons.append("it spreads the target over far fewer classes than the source-only model")
    lost = source_accuracy(reference) - source_accuracy(candidate)
    if lost > MAX_SOURCE_LOSS:
        reasons.append(f"it loses {lost:.2f} of balanced accuracy on held-out source images")
    if swapped_classes(expected, predicted, k):
        reasons.append("it gives classes of the target other names than the source-only model")
    elif chance_corrected_agreement(expected, predicted, k) < MIN_KAPPA:
        reasons.append("it agrees with the source-only model no more than by chance")
    if prior_low is not None and prior_high is not None:
        outside = beyond_prior(
            candidate.source_posterior,
            candidate.source_labels,
            candidate.target_posterior,
            prior_low,
            prior_high,
        )
        if outside > MAX_BEYOND_PRIOR:
            reasons.append(
                f"its class frequencies differ from the estimated prior (L1 {outside:.2f})"
            )
    return tuple(reasons)


def _ranks(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Return score to the rank of each row, 1 the best; scores that no row has are left out."""
    found = {}
    for score, (_, higher) in SCORES.items():
        values = np.array([row[score] for row in rows], dtype=np.float64)
        if not np.isfinite(values).any():
            continue
        cost = np.where(np.isfinite(values), -values if higher else values, np.inf)
        # Values that differ by rounding only must not decide.
        found[score] = rankdata(np.round(cost, 9), method="average").tolist()
    return found


def _weighted_median(values: FloatArray, weights: FloatArray) -> float:
    """Return the value at which half of the weight is reached, halfway where two values are."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    half, last = 0.5 * reached[-1], len(values) - 1
    low = int(np.searchsorted(reached, half - 1e-9))
    high = min(int(np.searchsorted(reached, half + 1e-9)), last)
    return float(0.5 * (values[order][low] + values[order][high]))
