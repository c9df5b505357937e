"""The order of training images: a pure function of seed, stream and step."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from daptkit.data.table import Indices

_MIN_STEPS = 50


def batch_indices(n: int, batch_size: int, *, seed: int, stream: int, step: int) -> Indices:
    """Return the rows of one batch of an endless, reshuffled order.

    Position i of the order is element i mod n of a permutation drawn from
    (seed, stream, floor(i / n)), so every pass shows each row once and any step can be asked for
    directly. A batch that reaches the end of a pass goes on in the next one.

    Args:
        n: number of rows, at least 1.
        batch_size: rows to return, at least 1; may exceed n.
        seed: seed of the run, at least 0.
        stream: number of the domain, at least 0.
        step: training step, from 0.

    Returns:
        (batch_size,) int64.

    Raises:
        ValueError: n or batch_size is below 1.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"no batches of {batch_size} from {n} rows")
    first = step * batch_size
    last = first + batch_size
    parts = []
    for number in range(first // n, (last - 1) // n + 1):
        start = number * n
        order = _permutation(n, seed, stream, number)
        parts.append(order[max(first - start, 0) : last - start])
    return np.concatenate(parts)


def steps_per_epoch(n_source: int, n_target: int, batch_size: int) -> int:
    """Return max(ceil(n_source / B), ceil(n_target / B)), at least 50.

    Args:
        n_source: number of source images; 0 for a source-free run.
        n_target: number of target images.
        batch_size: images B per domain and step.
    """
    return max(-(-n_source // batch_size), -(-n_target // batch_size), _MIN_STEPS)


@lru_cache(maxsize=8)
def _permutation(n: int, seed: int, stream: int, number: int) -> Indices:
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, number])))
    order = generator.permutation(n).astype(np.int64)
    order.setflags(write=False)
    return order
