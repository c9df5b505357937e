"""Errors and coverage of every estimator of the target prior, 5 classes, the rarest 2%.

``pytest tests/benchmarks/test_bench_prior.py -m benchmark -s`` prints the table; an hour or more
on one thread. The worlds are those of ``label_shift.py``: pure label shift, a random target
prior, a classifier that is over-confident and biased.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.label_shift import World, estimate
from daptkit.shift.labelshift import METHODS

SEEDS, SEEDS_OF_INTERVALS, SEPARATION = 100, 20, 3.5
REPLICATES = 100
"""Of an interval: 40 leave 5 points of coverage out, since their ends are nearly the extremes."""


def measured(method: str, n: int) -> tuple[float, float, float]:
    """Return median and 95th percentile of the L1 error, and the coverage of 95% intervals."""
    errors, inside = [], []
    for seed in range(SEEDS):
        world = World(seed, SEPARATION, n)
        truth = world.target_prior
        replicates = REPLICATES if seed < SEEDS_OF_INTERVALS else 0
        found = estimate(world, 0.0, method=method, bootstraps=replicates)
        errors.append(float(np.abs(found.estimate - truth).sum()))
        if replicates:
            inside.append(float(((found.low <= truth) & (truth <= found.high)).mean()))
    return float(np.median(errors)), float(np.quantile(errors, 0.95)), float(np.mean(inside))


@pytest.mark.benchmark
@pytest.mark.timeout(7200)
def test_prior_estimates() -> None:
    table = {}
    print("\n| estimator | n | median L1 | 95th percentile | coverage |\n|---|---|---|---|---|")
    for n in (200, 500, 2000):
        for method in METHODS:
            table[method, n] = median, tail, coverage = measured(method, n)
            print(f"| {method} | {n} | {median:.3f} | {tail:.3f} | {coverage:.2f} |", flush=True)
    for n in (200, 500, 2000):
        assert table["em", n][0] < table["bbse-hard", n][0]
        assert table["em", n][2] > 0.85
    assert table["em", 2000][0] < table["em", 200][0]
