"""Effect sizes of the difference of two samples of patients, with intervals and p values."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import brunnermunzel, mannwhitneyu, norm, rankdata

from daptkit.shift.arrays import FloatArray

LEVEL = 0.95
NAN = float("nan")
TABLES = 9999


def cohens_d(source: FloatArray, target: FloatArray) -> tuple[float, float, float]:
    """Return d = (mean_t - mean_s) / s with its 95% interval, s the pooled standard deviation.

    The interval is d +- 1.96 sqrt((n + m) / (n m) + d^2 / (2 (n + m))); NaN without spread.

    Args:
        source: (n,).
        target: (m,).

    Reference: Cohen 1988; Hedges, Olkin 1985, "Statistical Methods for Meta-Analysis", chapter 5.
    """
    n, m = len(source), len(target)
    if min(n, m) < 2:
        return NAN, NAN, NAN
    pooled = (source.var(ddof=1) * (n - 1) + target.var(ddof=1) * (m - 1)) / (n + m - 2)
    size = max(float(np.abs(source).max()), float(np.abs(target).max()))
    if pooled <= (1e-9 * size) ** 2:
        return NAN, NAN, NAN
    d = float((target.mean() - source.mean()) / np.sqrt(pooled))
    half = _z() * float(np.sqrt((n + m) / (n * m) + d * d / (2 * (n + m))))
    return d, d - half, d + half


def cliffs_delta(source: FloatArray, target: FloatArray) -> tuple[float, float, float]:
    """Return delta = P(t > s) - P(t < s) with its 95% interval, in [-1, 1].

    With a = (delta + 1) / 2, the interval of a holds every A with
    (a - A)^2 <= z^2 A (1 - A) (1 + (N - 1) ((1 - A) / (2 - A) + A / (1 + A))) / (n m),
    N = (n + m) / 2; it does not shrink to a point where the samples do not overlap.

    Args:
        source: (n,).
        target: (m,).

    Reference: Cliff 1993, doi:10.1037/0033-2909.114.3.494; Newcombe 2006, doi:10.1002/sim.2324
    (interval, method 5).
    """
    n, m = len(source), len(target)
    if min(n, m) < 1:
        return NAN, NAN, NAN
    ranks = rankdata(np.concatenate([source, target]))
    area = (float(ranks[n:].sum()) - m * (m + 1) / 2) / (n * m)
    middle = (n + m) / 2 - 1

    def outside(a: float) -> float:
        variance = a * (1 - a) * (1 + middle * ((1 - a) / (2 - a) + a / (1 + a))) / (n * m)
        return (area - a) ** 2 - _z() ** 2 * variance

    # At 0 and 1 themselves the variance vanishes, and the difference with it.
    edge = 1e-12
    low = brentq(outside, 0.0, min(area, 1.0 - edge)) if area > 0 else 0.0
    high = brentq(outside, max(area, edge), 1.0) if area < 1 else 1.0
    return 2 * area - 1, 2 * float(low) - 1, 2 * float(high) - 1


def rank_p(source: FloatArray, target: FloatArray) -> float:
    """Return the two-sided p value of H0: P(t > s) = P(t < s).

    Brunner and Munzel's test, which bears unequal spreads (patients have different numbers of
    images at the sites); the Mann-Whitney test where one of them has fewer than 10 patients or the
    samples do not overlap, where the former has no variance.

    Args:
        source: (n,).
        target: (m,).

    Reference: Brunner, Munzel 2000, "The nonparametric Behrens-Fisher problem", Biometrical
    Journal 42(1).
    """
    if min(len(source), len(target)) < 2 or np.ptp(np.concatenate([source, target])) == 0:
        return NAN
    apart = source.max() < target.min() or target.max() < source.min()
    if apart or min(len(source), len(target)) < 10:
        return float(mannwhitneyu(source, target, alternative="two-sided").pvalue)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(brunnermunzel(source, target).pvalue)


def cramers_v(table: npt.NDArray[np.int64]) -> float:
    """Return Cramer's V of a 2 x C table of counts, corrected for bias, in [0, 1].

    V = sqrt(f / min(R, S)), f = max(0, chi^2 / n - (C - 1) / (n - 1)), R = 1 - 1 / (n - 1),
    S = C - 1 - (C - 1)^2 / (n - 1).

    Args:
        table: (2, C), counts.

    Reference: Bergsma 2013, doi:10.1016/j.jkss.2012.10.002.
    """
    counts = table[:, table.sum(axis=0) > 0].astype(np.float64)
    n, columns = counts.sum(), counts.shape[1]
    if columns < 2 or n < 3 or (counts.sum(axis=1) == 0).any():
        return 0.0
    phi2 = max(0.0, float(_chi2(counts[None])[0]) / n - (columns - 1) / (n - 1))
    rows_less = 1.0 - 1.0 / (n - 1)
    columns_less = columns - 1 - (columns - 1) ** 2 / (n - 1)
    smaller = min(rows_less, columns_less)
    return float(min(1.0, np.sqrt(phi2 / smaller))) if smaller > 0 else 0.0


def table_p(table: npt.NDArray[np.int64], seed: int, tables: int = TABLES) -> float:
    """Return (b + 1) / (B + 1), b of B tables of equal margins with at least this chi^2.

    Args:
        table: (2, C) counts of patients.
        seed: of the tables.
        tables: B.

    Reference: Agresti 1992, doi:10.1214/ss/1177011454 (exact tests of contingency tables).
    """
    counts = table[:, table.sum(axis=0) > 0]
    if counts.shape[1] < 2 or (counts.sum(axis=1) == 0).any():
        return NAN
    totals = counts.sum(axis=0)
    rng = np.random.default_rng(seed)
    first = rng.multivariate_hypergeometric(totals, int(counts[0].sum()), size=tables)
    drawn = _chi2(np.stack([first, totals - first], axis=1).astype(np.float64))
    observed = float(_chi2(counts[None].astype(np.float64))[0])
    return (int((drawn >= observed * (1 - 1e-9)).sum()) + 1) / (tables + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, max_{j <= i} min(1, (k - j + 1) p_(j)); NaN stays NaN.

    Rejecting those at most alpha keeps the chance of any false rejection at alpha.

    Args:
        p_values: k of them that are not NaN.

    Reference: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), np.nan)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    running = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    adjusted[order] = np.minimum(running, 1.0)
    return [float(v) for v in adjusted]


def _chi2(tables: FloatArray) -> FloatArray:
    """Return the chi^2 statistic of tables (B, 2, C) without empty margins, (B,)."""
    n = tables.sum(axis=(1, 2), keepdims=True)
    expected = tables.sum(axis=2, keepdims=True) * tables.sum(axis=1, keepdims=True) / n
    return np.asarray(((tables - expected) ** 2 / expected).sum(axis=(1, 2)))


def _z() -> float:
    return float(norm.ppf(0.5 + LEVEL / 2))
