"""The three questions of a diagnosis, asked in turn."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.shift.arrays import FloatArray, IntArray
from daptkit.shift.movedprior import moved_prior_test
from daptkit.shift.priortest import prior_test
from daptkit.shift.residual import residual_test
from daptkit.shift.twosample import ShiftTest, domain_test
from daptkit.shift.verdict import kind_of_shift


@dataclass(frozen=True, kw_only=True)
class Images:
    """Features, logits and patients of one domain's images."""

    features: FloatArray  # (N, D)
    logits: FloatArray  # (N, K)
    groups: IntArray  # (N,) numbered from 0


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The kind of shift, a sentence for each question, and the tests behind them."""

    kind: str
    reasons: tuple[str, ...]
    domains: ShiftTest
    prior: ShiftTest
    residual: ShiftTest
    moved_prior: ShiftTest | None


def three_questions(
    source: Images, labels: IntArray, target: Images, *, alpha: float, permutations: int, seed: int
) -> Answers:
    """Ask whether the domains differ, whether the prior changed and what re-weighting leaves.

    Where the last two say yes, :func:`daptkit.shift.moved_prior_test` asks for the prior again.
    How answers make a kind is in :func:`daptkit.shift.verdict.kind_of_shift`.
    """
    groups = {"source_groups": source.groups, "target_groups": target.groups}
    domains = domain_test(
        source.features, target.features, permutations=permutations, seed=seed, **groups
    )
    prior = prior_test(source.logits, target.logits, permutations=permutations, seed=seed, **groups)
    residual = residual_test(
        source.features,
        source.logits,
        labels,
        target.features,
        target.logits,
        resamples=permutations,
        seed=seed,
        **groups,
    )
    moved = None
    if prior.tested and residual.tested and max(prior.p, residual.p) <= alpha:
        moved = moved_prior_test(
            source.logits,
            labels,
            target.logits,
            source_groups=source.groups,
            target_groups=target.groups,
            seed=seed,
        )
    kind, reasons = kind_of_shift(domains, prior, residual, alpha, moved)
    return Answers(
        kind=kind,
        reasons=reasons,
        domains=domains,
        prior=prior,
        residual=residual,
        moved_prior=moved,
    )
