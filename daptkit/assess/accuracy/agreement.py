"""Agreement of independently trained heads as an estimate of how often they are right."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.special import ndtr, ndtri

from daptkit.shift.arrays import FloatArray, IntArray

MIN_HEADS_FOR_A_LINE = 4
"""Heads below which the line has no more than three points and is not drawn."""
MIN_FIT = 0.5
"""R^2 of the line below which agreement at the source says nothing of that at the target."""


@dataclass(frozen=True)
class Agreement:
    """Which of the head pairs agree on which images, prepared once for many weightings.

    Args:
        pairs: (P, N) 1 where the two heads of a pair give one class.
        both: (K, N) share of the pairs that agree on class k.
        votes: (K, N) share of the heads that say class k.
    """

    pairs: FloatArray
    both: FloatArray
    votes: FloatArray

    @classmethod
    def of(cls, heads: IntArray, num_classes: int) -> Agreement:
        """Return the agreement of at least two heads (H, N)."""
        index = list(combinations(range(len(heads)), 2))
        pairs = np.stack([(heads[i] == heads[j]).astype(np.float64) for i, j in index])
        classes = np.arange(num_classes)[:, None]  # (K, 1)
        both = np.mean([(heads[i] == heads[j]) & (heads[i] == classes) for i, j in index], axis=0)
        votes = np.mean([head == classes for head in heads], axis=0)
        return cls(pairs, np.asarray(both, np.float64), np.asarray(votes, np.float64))


def gde_accuracy(agreement: Agreement, weights: FloatArray) -> float:
    """Return how often two heads agree on the target, the mean over pairs, in [0, 1].

    Where the ensemble of heads is calibrated on the target, a head's expected accuracy is its
    expected agreement with another one.

    Args:
        agreement: of H heads on M target images.
        weights: (M,) such as bootstrap counts.

    Reference: Jiang et al. 2022, arXiv:2106.13799 (generalisation disagreement equality).
    """
    return float((agreement.pairs @ weights).mean() / weights.sum())


def gde_balanced_accuracy(agreement: Agreement, weights: FloatArray) -> float:
    """Return mean_k P(h = k, h' = k) / P(h = k) over the classes that a head predicts.

    Class-wise calibration, under which the equality is proved, makes P(h = k, h' = k) the hits of
    class k and P(h = k) its frequency, so that their ratio is the recall of k.
    """
    hits, frequency = agreement.both @ weights, agreement.votes @ weights
    return float((hits[frequency > 0] / frequency[frequency > 0]).mean())


def chance_corrected(agreement: Agreement, weights: FloatArray) -> float:
    """Return Fleiss' kappa of the heads: 1 always agree, 0 no more than by chance.

    Reference: Fleiss 1971, doi:10.1037/h0031619.
    """
    share = agreement.votes @ weights / weights.sum()
    expected = float(share @ share)
    observed = gde_accuracy(agreement, weights)
    return (observed - expected) / (1.0 - expected) if expected < 1.0 else 0.0


def aline_accuracy(
    source: Agreement,
    right: FloatArray,
    target: Agreement,
    source_weights: FloatArray,
    target_weights: FloatArray,
) -> float:
    r"""Return the heads' mean accuracy on the target by agreement on the line (ALine-D).

    With F = probit, a line F(agr_t) = a F(agr_s) + b is fitted over pairs of heads. The accuracies
    are the least squares solution of, for every pair,

    .. math:: \tfrac12 (F(acc_t^i) + F(acc_t^j)) =
        F(agr_t^{ij}) + a (\tfrac12 (F(acc_s^i) + F(acc_s^j)) - F(agr_s^{ij}))

    Args:
        source: agreement of H heads on N held-out source images.
        right: (H, N) 1 where a head is right.
        target: agreement of the same heads on M target images.
        source_weights: (N,) such as bootstrap counts.
        target_weights: (M,) likewise.

    Returns:
        An estimate in [0, 1]; NaN with fewer than 4 heads, or where the pairs lie on no rising line
        (a <= 0, or R^2 below 0.5): heads of one recipe are often too alike for one.

    Reference: Baek et al. 2022, arXiv:2206.13089.
    """
    if len(right) < MIN_HEADS_FOR_A_LINE:
        return float("nan")
    n, m = float(source_weights.sum()), float(target_weights.sum())
    accuracy = _probit(right @ source_weights / n, n)  # (H,)
    at_source = _probit(source.pairs @ source_weights / n, n)  # (P,)
    at_target = _probit(target.pairs @ target_weights / m, m)
    x, y = at_source - at_source.mean(), at_target - at_target.mean()
    spread = float(x @ x)
    if spread <= 1e-12:
        return float("nan")
    slope = float(x @ y) / spread
    left = float(((y - slope * x) ** 2).sum())
    if slope <= 0 or left > (1.0 - MIN_FIT) * float(y @ y):
        return float("nan")
    system = np.zeros((len(at_source), len(right)))
    for row, pair in enumerate(combinations(range(len(right)), 2)):
        system[row, list(pair)] = 0.5
    wanted = at_target + slope * (system @ accuracy - at_source)
    solved = np.linalg.lstsq(system, wanted, rcond=None)[0]
    return float(ndtr(solved).mean())


def _probit(rate: FloatArray, n: float) -> FloatArray:
    """Return the normal quantile of rates of n images, kept half an image away from 0 and 1."""
    return np.asarray(ndtri(np.clip(rate, 0.5 / n, 1.0 - 0.5 / n)), dtype=np.float64)
