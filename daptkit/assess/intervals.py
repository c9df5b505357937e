"""Bootstrap intervals: whole groups (patients) are resampled, as counts instead of copies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Estimate = dict[str, float | None]
"""``{"value": ..., "low": ..., "high": ...}``; ``None`` for what is not defined."""

LEVEL = 0.95
"""Confidence level of every interval."""

_CHUNK = 4_000_000
"""Most numbers held at once for one block of resamples: about 32 MB each."""


def resample_counts(
    n_groups: int, n_images: int, n_resamples: int, seed: int
) -> Iterator[npt.NDArray[np.float64]]:
    """Yield blocks (b, G) of how often each group occurs in each bootstrap sample.

    Args:
        n_groups: number of groups G; each sample draws G of them with replacement.
        n_images: number of images, which bounds the size of a block.
        n_resamples: number of samples in all; the blocks do not change what is drawn.
        seed: seed of the draws.

    Reference: Efron 1979, doi:10.1214/aos/1176344552.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _CHUNK // max(n_images, n_groups))
    for start in range(0, n_resamples, block):
        size = min(block, n_resamples - start)
        drawn = rng.integers(n_groups, size=(size, n_groups))
        drawn += n_groups * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n_groups)
        yield counts.reshape(size, n_groups).astype(np.float64)


def percentile_interval(value: float, draws: Floats) -> Estimate:
    """Return the value with the percentile interval of its bootstrap draws, NaN draws left out.

    Args:
        value: the estimate on all images; NaN where it is not defined.
        draws: (B,) the same statistic on each resample; empty for no interval.
    """
    bounds = _percentiles(value, draws)
    return _estimate(value, *bounds)


def rate_interval(value: float, draws: Floats, n_groups: int) -> Estimate:
    """Return a rate with its percentile interval, or the exact one where all agree.

    Where every image is right (or every one wrong) so is every resample, and the bootstrap claims
    certainty. The far bound is then the exact binomial one, (alpha / 2)^(1 / G) away.

    Args:
        value: the rate on all images, in [0, 1], or NaN.
        draws: (B,) the rate on each resample.
        n_groups: number of independent groups G that the rate rests on; below 2: no interval.

    Reference: Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    low, high = _percentiles(value, draws) if n_groups > 1 else (None, None)
    if low is not None and value in (0.0, 1.0):
        width = 1.0 - ((1.0 - LEVEL) / 2) ** (1.0 / n_groups)
        low, high = (1.0 - width, 1.0) if value == 1.0 else (0.0, width)
    return _estimate(value, low, high)


def biased_interval(value: float, draws: Floats, high_limit: float = 1.0) -> Estimate:
    """Return the reverse percentile interval of a statistic that noise can only increase.

    A calibration error of a resample exceeds the estimate as the estimate exceeds the truth, so
    the percentiles are mirrored at the value: [2v - q_high, 2v - q_low]. The interval is cut to
    [0, ``high_limit``] and widened where needed to hold the value itself.

    Args:
        value: the estimate on all images, >= 0, or NaN.
        draws: (B,) the same statistic on each resample.
        high_limit: largest possible value.

    Reference: Davison and Hinkley 1997, section 5.2, doi:10.1017/CBO9780511802843.
    """
    low, high = _percentiles(value, draws)
    if low is not None and high is not None:
        mirrored = np.clip([2 * value - high, 2 * value - low], 0.0, high_limit)
        low, high = min(value, float(mirrored[0])), max(value, float(mirrored[1]))
    return _estimate(value, low, high)


def _percentiles(value: float, draws: Floats) -> tuple[float | None, float | None]:
    known = draws[~np.isnan(draws)]
    if np.isnan(value) or not len(known):
        return None, None
    tail = 100 * (1.0 - LEVEL) / 2
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def _estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return {"value": None if np.isnan(value) else float(value), "low": low, "high": high}
