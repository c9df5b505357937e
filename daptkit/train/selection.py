"""Which epoch's model a run delivers, chosen without target labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.assess.scores import (
    SCORES,
    ScoreInputs,
    choose,
    score_values,
    score_weights,
    source_accuracy,
    veto,
)
from daptkit.shift import ShiftDiagnosis
from daptkit.shift.arrays import FloatArray
from daptkit.train.scoreset import AUTO

DIGITS = 9
"""Decimals of a score that count: values that differ by rounding only must not decide."""

UNREADABLE = "its kept model is missing or damaged"


@dataclass(frozen=True, kw_only=True)
class Prior:
    """A trusted estimate of the target's prior, (K,) each: the estimate and its interval's ends."""

    estimate: FloatArray
    low: FloatArray
    high: FloatArray


def trusted_prior(diagnosis: ShiftDiagnosis) -> Prior | None:
    """Return the target's prior by a diagnosis; ``None`` where it is not to be used."""
    found = diagnosis.target_prior
    if found is None or not found.trusted or not np.isfinite(found.low).all():
        return None
    return Prior(estimate=found.estimate, low=found.low, high=found.high)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What epochs are chosen by.

    Args:
        name: ``"auto"`` or a score.
        higher_is_better: of that score; of no matter for ``"auto"``.
        kind: diagnosed kind of shift.
        prior: trusted estimate of the target's prior, or ``None``.
        reference: the source-only model on the images that the epochs are scored on.
        raises_confidence: whether a method's loss raises confidence on the target.
    """

    name: str
    higher_is_better: bool
    kind: str
    prior: Prior | None
    reference: ScoreInputs
    raises_confidence: bool = False

    @property
    def weights(self) -> dict[str, float]:
        """Score to its weight."""
        if self.name != AUTO:
            return {self.name: 1.0}
        return score_weights(self.kind, self.prior is not None, self.raises_confidence)

    def cost(self, score: str, value: float) -> float:
        """Return a score as a cost, the lower the better; infinite where it is not defined."""
        higher = SCORES[score][1] if score in SCORES else self.higher_is_better
        if not np.isfinite(value):
            return float("inf")
        return round(-value if higher else value, DIGITS)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One epoch.

    Args:
        epoch: its number, from 1.
        scores: those that count, NaN where not defined.
        vetoes: sentences that speak against it.
        source_accuracy: balanced accuracy on held-out source images; NaN where not known.
    """

    epoch: int
    scores: dict[str, float]
    vetoes: tuple[str, ...]
    source_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen epoch and why.

    Args:
        epoch: its number.
        why: one sentence without a full stop.
        candidates: every epoch.
        median_rank: epoch to its weighted median rank, of those without veto.
        rule: what it was chosen by.
    """

    epoch: int
    why: str
    candidates: tuple[Candidate, ...]
    median_rank: dict[int, float] = field(default_factory=dict)
    rule: Rule

    @property
    def last(self) -> int:
        """Number of the last epoch."""
        return self.candidates[-1].epoch

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``run.json`` holds them."""
        return {
            "rule": self.rule.name,
            "epoch": self.epoch,
            "of": self.last,
            "why": self.why,
            "shift": self.rule.kind,
            "weights": {score: weight for score, weight in self.rule.weights.items() if weight},
            "epochs": [
                {**asdict(one), "median_rank": self.median_rank.get(one.epoch)}
                for one in self.candidates
            ],
        }


class Selection:
    """The epochs of one training so far, and which of their models may still be chosen.

    An epoch that another one equals or surpasses by every score that counts can never be chosen,
    whatever comes, so its model need not be kept.

    Args:
        rule: what epochs are chosen by.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.candidates: list[Candidate] = []

    def add(self, epoch: int, values: Mapping[str, float], inputs: ScoreInputs | None) -> None:
        """Take an epoch.

        Args:
            epoch: its number, from 1, higher than those before.
            values: every score of it.
            inputs: what they are computed from; ``None`` where the model's outputs are not finite.
        """
        rule = self.rule
        if inputs is None:
            vetoes: tuple[str, ...] = ("its outputs are not finite",)
            accuracy = float("nan")
        else:
            prior = rule.prior
            ends = (None, None) if prior is None else (prior.low, prior.high)
            vetoes, accuracy = veto(inputs, rule.reference, *ends), source_accuracy(inputs)
            if rule.name == AUTO and prior is not None:
                values = score_values(replace(inputs, target_prior=prior.estimate))
        self.candidates.append(
            Candidate(
                epoch=epoch,
                scores={score: float(values[score]) for score in rule.weights},
                vetoes=vetoes,
                source_accuracy=accuracy,
            )
        )

    def needed(self) -> set[int]:
        """Return the epochs that may still be chosen."""
        left = [one for one in self.candidates if not one.vetoes]
        costs = self._costs(left)  # (N, S)
        kept = set()
        for i, one in enumerate(left):
            as_good = (costs <= costs[i]).all(axis=1)
            better = as_good & ((costs < costs[i]).any(axis=1) | (np.arange(len(left)) > i))
            if not better.any():
                kept.add(one.epoch)
        return kept

    def choose(self, unreadable: frozenset[int] = frozenset()) -> Choice:
        """Choose among the epochs; the last one where nothing speaks for another.

        Args:
            unreadable: epochs whose models are lost.
        """
        candidates = tuple(
            replace(one, vetoes=(*one.vetoes, UNREADABLE)) if one.epoch in unreadable else one
            for one in self.candidates
        )
        left = [one for one in candidates if not one.vetoes]
        if not left:
            why = f"no epoch can be trusted ({candidates[-1].vetoes[0]})"
        elif not np.isfinite(self._costs(left)).any():
            why = "no score that counts is defined"
        else:
            return (self._by_rank if self.rule.name == AUTO else self._by_score)(candidates)
        return Choice(
            epoch=candidates[-1].epoch,
            why=f"{why}, so it is the last",
            candidates=candidates,
            rule=self.rule,
        )

    def _by_score(self, candidates: tuple[Candidate, ...]) -> Choice:
        left = [one for one in reversed(candidates) if not one.vetoes]
        best = left[int(np.argmin(self._costs(left)[:, 0]))]
        name = self.rule.name
        told = f"best {name} ({best.scores[name]:.4g})"
        return Choice(
            epoch=best.epoch,
            why=_beside_last(told, best, candidates[-1], lambda one: f"{one.scores[name]:.4g}"),
            candidates=candidates,
            rule=self.rule,
        )

    def _by_rank(self, candidates: tuple[Candidate, ...]) -> Choice:
        # Order decides between equals, so that the last epoch wins them.
        latest = {str(one.epoch): one for one in reversed(candidates)}
        found = choose(
            {name: one.scores for name, one in latest.items()},
            {name: one.vetoes for name, one in latest.items()},
            dict.fromkeys(latest, 0.0),
            self.rule.weights,
        )
        assert found.chosen is not None
        best, rank = latest[found.chosen], {int(n): r for n, r in found.median_rank.items()}
        told = f"best weighted median rank of the label-free scores ({rank[best.epoch]:.3g})"
        return Choice(
            epoch=best.epoch,
            why=_beside_last(told, best, candidates[-1], lambda one: f"{rank[one.epoch]:.3g}"),
            candidates=candidates,
            median_rank=rank,
            rule=self.rule,
        )

    def _costs(self, candidates: list[Candidate]) -> npt.NDArray[np.float64]:
        names = [score for score, weight in self.rule.weights.items() if weight > 0]
        rows = [[self.rule.cost(n, one.scores[n]) for n in names] for one in candidates]
        return np.array(rows, dtype=np.float64).reshape(len(candidates), len(names))

    def state(self) -> list[dict[str, Any]]:
        """Return what a checkpoint stores."""
        return [asdict(one) for one in self.candidates]

    def load_state(self, state: list[dict[str, Any]]) -> None:
        """Go on as a checkpoint left it."""
        self.candidates = [Candidate(**one) for one in state]


def _beside_last(told: str, best: Candidate, last: Candidate, value: Any) -> str:
    """Add to the reason for an epoch what is to be said of the last one."""
    if best.epoch == last.epoch:
        return told
    if last.vetoes:
        return f"{told}; against the last epoch: {last.vetoes[0]}"
    return f"{told}; the last epoch: {value(last)}"
