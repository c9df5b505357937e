"""Features as finite vectors whose inner products are kernels, and their sums over patients."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from daptkit.shift.arrays import FloatArray, IntArray
from daptkit.shift.pairs import SquaredDistances, bandwidth, mean_kernels

LANDMARKS = 500
"""Rows up to which the embedding is exact, and landmarks above that."""

_CUT = 1e-6
_ROWS = 8192

RealArray = npt.NDArray[np.floating[Any]]


def kernel_embedding(pooled: FloatArray, seed: int) -> RealArray | None:
    """Return phi (N, L) with phi phi' the kernel of :func:`daptkit.shift.mmd2`, or close to it.

    phi(x) = k(x, Z) U diag(l)^(-1/2), k(Z, Z) = U diag(l) U', Z all rows up to 500 of them, 500
    drawn rows otherwise. Landmarks are drawn without a look at the domains, so a test that permutes
    domains keeps its level whatever the error of phi phi' is; that error only costs power.

    Args:
        pooled: (N, D) rows of both domains.
        seed: of the landmarks and of the bandwidth's subsample.

    Returns:
        phi in float64, float32 above 2000 rows; ``None`` for features that are all alike.

    Reference: Williams, Seeger 2001, "Using the Nystroem method to speed up kernel machines"; Choi,
    Kim 2024, arXiv:2407.08976 (permutation tests on approximate kernels).
    """
    if not differs(pooled):
        return None
    n = len(pooled)
    size = min(n, LANDMARKS)
    drawn = np.arange(n)
    if n > size:
        drawn = np.sort(np.random.default_rng(seed).choice(n, size, replace=False))
    rest = np.delete(np.arange(n), drawn)
    order = np.concatenate([drawn, rest])
    ordered = pooled if n == size else pooled[order]
    width = bandwidth(pooled, seed)
    every = slice(0, size)
    inner = mean_kernels(SquaredDistances(ordered[:size]).block(every, every), width)
    values, vectors = np.linalg.eigh(inner)
    kept = values > _CUT * values[-1]
    project = vectors[:, kept] / np.sqrt(values[kept])
    distances = SquaredDistances(ordered)
    project = project.astype(distances.x.dtype)
    phi = np.empty((n, project.shape[1]), project.dtype)
    for first in range(0, n, _ROWS):
        rows = slice(first, min(first + _ROWS, n))
        phi[order[rows]] = mean_kernels(distances.block(rows, every), width) @ project
    return phi


def group_sums(values: RealArray, groups: IntArray, number: int) -> FloatArray:
    """Return the sums of rows (N, F) over each group 0 ... ``number`` - 1, (G, F), in float64."""
    rows = np.arange(len(groups))
    ones = np.ones(len(groups), values.dtype)
    members = csr_array((ones, (groups, rows)), shape=(number, len(groups)))
    return np.asarray(members @ values, dtype=np.float64)


def differs(x: FloatArray) -> bool:
    """Return whether features differ by more than rounding."""
    largest = max(float(x.max()), -float(x.min()))
    return bool(x.std(axis=0).max() > 1e-9 * max(largest, 1e-12))
