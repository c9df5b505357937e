"""Estimates of a model's accuracy on the target without its labels, each under an assumption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.assess.accuracy.agreement import (
    Agreement,
    aline_accuracy,
    gde_accuracy,
    gde_balanced_accuracy,
)
from daptkit.assess.accuracy.atc import atc_accuracy, max_confidence, negative_entropy
from daptkit.assess.accuracy.doc import doc_accuracy
from daptkit.assess.accuracy.notes import ASSUMPTIONS, FAILS, as_far_as_seen, reliability
from daptkit.assess.accuracy.recall import (
    class_recalls,
    mean_recall,
    prior_weighted_accuracy,
    target_prior,
)
from daptkit.assess.accuracy.sample import Sample, as_heads
from daptkit.assess.intervals import LEVEL, Estimate, rate_interval
from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray
from daptkit.shift.bootstrap import group_counts

MAX_OVER_AGREEMENT = 0.03
"""Heads that agree this much more often than they are right at the source are not calibrated."""
GDE = "gde"
BALANCED = "balanced:"
"""Prefix of the names of balanced accuracies among :class:`Draws`."""


@dataclass(frozen=True, kw_only=True)
class AccuracyEstimate:
    """What one estimator says of a model's accuracy on the target; never a measured accuracy.

    Args:
        name: ``"atc"``, ``"atc_entropy"``, ``"doc"``, ``"prior_weighted_recall"``, ``"gde"`` or
            ``"aline"``.
        estimated_accuracy: value in [0, 1] with its 95% interval; ``low`` and ``high`` are ``None``
            for ``gde``.
        estimated_balanced_accuracy: the same, or ``None`` where the estimator defines none.
        assumption: what must hold for it to be right.
        reliability: ``"holds"`` (nothing found contradicts the assumption), ``"indicative"``,
            ``"doubtful"``, ``"fails"`` or ``"unknown"``: what the diagnosis says of the assumption,
            ``"indicative"`` at most where few patients could hide a shift.
        note: why, in one sentence.
        reference: the paper.

    The interval covers the sampling of both domains, not a wrong assumption. ``gde`` has none: the
    agreement of heads is measured sharply, but its distance from their accuracy, the calibration
    error of their votes on the target, is not, and an interval around it held the truth in at most
    a quarter of simulated sites (worlds of ``tests/benchmarks/test_bench_accuracy.py``). It reads
    as a figure that is rather too high (Jiang et al. 2022, arXiv:2106.13799: equal only where the
    ensemble is calibrated on the target).
    """

    name: str
    estimated_accuracy: Estimate
    estimated_balanced_accuracy: Estimate | None
    assumption: str
    reliability: str
    note: str
    reference: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        balanced = self.estimated_balanced_accuracy
        return {
            "name": self.name,
            "estimated_accuracy": dict(self.estimated_accuracy),
            "estimated_balanced_accuracy": None if balanced is None else dict(balanced),
            "level": LEVEL,
            "assumption": self.assumption,
            "reliability": self.reliability,
            "note": self.note,
            "reference": self.reference,
        }


@dataclass(frozen=True)
class Draws:
    """Values of estimates and their bootstrap replicates.

    Args:
        values: name to value; balanced accuracies under ``"balanced:"`` + name.
        replicates: name to (B,). Equal seeds and groups draw equal resamples, so replicates of two
            models on the same images are paired.
    """

    values: dict[str, float]
    replicates: dict[str, FloatArray]


def estimate_accuracy(
    sample: Sample,
    *,
    kind: str | None = None,
    source_heads: npt.ArrayLike | None = None,
    target_heads: npt.ArrayLike | None = None,
    n_bootstrap: int = 500,
    seed: int = 0,
    drawn: Draws | None = None,
) -> tuple[AccuracyEstimate, ...]:
    """Estimate a model's accuracy on the target, without its labels, in several ways.

    Patients of both domains are resampled; thresholds, recalls and the target's prior are found
    again in each resample. The calibration is kept: fitted again in each, too, it made intervals
    wider by 0 to 7% in simulations of 60 to 450 images.

    Args:
        sample: the model on held-out source and target images.
        kind: diagnosed kind of shift: ``"none"``, ``"covariate"``, ``"label"``, ``"both"``,
            ``"unclear"`` or ``None``.
        source_heads: (H, N) classes by independently trained heads of the source images.
        target_heads: (H, M) of the target images; at least two heads.
        n_bootstrap: resamples of each interval; 0 for none.
        seed: of the resampling.
        drawn: what :func:`estimate_draws` has made of the same, not to be made again.

    Returns:
        Estimates that could be made, ``gde`` and ``aline`` only with heads.

    Raises:
        DataError: heads of wrong shape.
        UsageError: unknown kind.
    """
    reliability("atc", kind)  # a wrong kind is told before the work
    made_of = drawn or estimate_draws(
        sample,
        source_heads=source_heads,
        target_heads=target_heads,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )

    def interval(name: str) -> Estimate:
        units = 0 if name in (GDE, BALANCED + GDE) else sample.units
        return rate_interval(made_of.values[name], made_of.replicates[name], units)

    made = []
    over = _over_agreement(sample, source_heads)
    for name in (name for name in made_of.values if not name.startswith(BALANCED)):
        estimate = interval(name)
        level, note = as_far_as_seen(*reliability(name, kind), _half_width(estimate, sample))
        if name == GDE and over is not None and abs(over) > MAX_OVER_AGREEMENT:
            word = "more" if over > 0 else "less"
            level = FAILS
            note = f"on the source the heads agree {abs(over):.2f} {word} often than they are right"
        balanced = BALANCED + name
        made.append(
            AccuracyEstimate(
                name=name,
                estimated_accuracy=estimate,
                estimated_balanced_accuracy=interval(balanced)
                if balanced in made_of.values
                else None,
                assumption=ASSUMPTIONS[name].text,
                reliability=level,
                note=note,
                reference=ASSUMPTIONS[name].reference,
            )
        )
    return tuple(made)


def _half_width(estimate: Estimate, sample: Sample) -> float:
    """Return that of the interval; 0 where none was asked for, infinite where none can be."""
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None:
        return float("inf") if sample.units < 2 else 0.0
    return 0.5 * (high - low)


def estimate_draws(
    sample: Sample,
    *,
    source_heads: npt.ArrayLike | None = None,
    target_heads: npt.ArrayLike | None = None,
    n_bootstrap: int = 500,
    seed: int = 0,
) -> Draws:
    """Return every estimate and its replicates, for intervals and paired differences.

    Args:
        sample: the model on held-out source and target images.
        source_heads: (H, N), see :func:`estimate_accuracy`; without them there is no ``aline``.
        target_heads: (H, M); without them there is no ``gde``.
        n_bootstrap: resamples.
        seed: of the resampling.

    Raises:
        DataError: heads of wrong shape.
    """
    prepared = _Prepared(sample, source_heads, target_heads)
    n, m = len(sample.labels), len(sample.target_posterior)
    values = prepared.values(np.ones(n), np.ones(m))
    values = {name: value for name, value in values.items() if np.isfinite(value)}
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n_bootstrap if sample.units > 1 else 0):
        source = group_counts(sample.source_groups, rng)
        found = prepared.values(source, group_counts(sample.target_groups, rng))
        rows.append([found[name] for name in values])
    table = np.asarray(rows, dtype=np.float64).reshape(-1, len(values))
    return Draws(values, {name: table[:, i] for i, name in enumerate(values)})


def _over_agreement(sample: Sample, source_heads: npt.ArrayLike | None) -> float | None:
    """Return how much more often heads agree than are right on the source, ``None`` without."""
    if source_heads is None:
        return None
    heads = as_heads(source_heads, len(sample.labels), sample.num_classes, "source heads")
    if len(heads) < 2:
        return None
    ones = np.ones(len(sample.labels))
    right = float((heads == sample.labels).mean())
    return gde_accuracy(Agreement.of(heads, sample.num_classes), ones) - right


class _Prepared:
    """What does not change from resample to resample."""

    def __init__(
        self,
        sample: Sample,
        source_heads: npt.ArrayLike | None,
        target_heads: npt.ArrayLike | None,
    ) -> None:
        self.sample = sample
        k = sample.num_classes
        right = sample.source_posterior.argmax(axis=1) == sample.labels
        self.right = right.astype(np.float64)
        self.scores = {
            "atc": (
                max_confidence(sample.source_posterior),
                max_confidence(sample.target_posterior),
            ),
            "atc_entropy": (
                negative_entropy(sample.source_posterior),
                negative_entropy(sample.target_posterior),
            ),
        }
        self.target_agreement: Agreement | None = None
        self.source_agreement: Agreement | None = None
        if target_heads is None:
            return
        on_target = as_heads(target_heads, len(sample.target_posterior), k, "target heads")
        if len(on_target) < 2:
            raise DataError("agreement needs at least 2 independently trained heads.")
        self.target_agreement = Agreement.of(on_target, k)
        if source_heads is not None:
            on_source = as_heads(source_heads, len(sample.labels), k, "source heads")
            if len(on_source) != len(on_target):
                raise DataError(
                    f"there are {len(on_source)} heads on the source, but {len(on_target)} on the "
                    "target."
                )
            self.source_agreement = Agreement.of(on_source, k)
            self.heads_right = (on_source == sample.labels).astype(np.float64)

    def values(self, s: FloatArray, t: FloatArray) -> dict[str, float]:
        """Return every estimate where rows of source and target count ``s`` and ``t`` times."""
        sample = self.sample
        found = {
            name: atc_accuracy(source, self.right, target, s, t)
            for name, (source, target) in self.scores.items()
        }
        on_source, on_target = self.scores["atc"]
        found["doc"] = doc_accuracy(on_source, self.right, on_target, s, t)
        q = target_prior(sample.source_shared, sample.labels, sample.target_shared, s, t)
        for name, decided in (
            ("prior_weighted_recall", sample.source_decisions),
            (BALANCED + "prior_weighted_recall", sample.source_balanced),
        ):
            recalls = class_recalls(sample.labels, decided, s, sample.num_classes)
            summary = mean_recall if name.startswith(BALANCED) else prior_weighted_accuracy
            found[name] = summary(recalls, q)
        if self.target_agreement is not None:
            found["gde"] = gde_accuracy(self.target_agreement, t)
            found[BALANCED + "gde"] = gde_balanced_accuracy(self.target_agreement, t)
            if self.source_agreement is not None:
                found["aline"] = aline_accuracy(
                    self.source_agreement, self.heads_right, self.target_agreement, s, t
                )
        return found
