"""Distances and kernels of all pairs of a sample's rows, one block of pairs in memory at a time."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist, pdist
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped,unused-ignore]

from daptkit.shift.arrays import FloatArray, IntArray

EXACT_ROWS = 2000
"""Rows up to which distances are sums of squared differences in float64."""

_TILE = 512  # rows and columns of a block of kernels: it stays in a core's cache
_PANEL = 1 << 22  # pairs of a block of whole rows

RealArray = npt.NDArray[np.floating[Any]]
T = TypeVar("T")


class SquaredDistances:
    """Squared distances of rows x (N, D).

    Of more than 2000 rows they come from inner products of centred rows in float32, tens of
    times as fast; their error is about 1e-7 of a row's squared distance to the mean.
    """

    def __init__(self, x: FloatArray) -> None:
        self.exact = len(x) <= EXACT_ROWS
        self.x: RealArray = x
        if not self.exact:
            self.x = np.empty(x.shape, np.float32)
            np.subtract(x, x.mean(axis=0), out=self.x, casting="same_kind")
            self.norms = np.einsum("nd,nd->n", self.x, self.x)

    def block(self, rows: slice, columns: slice) -> RealArray:
        """Return those of some rows to others, (R, C), float64 or float32."""
        if self.exact:
            return np.asarray(cdist(self.x[rows], self.x[columns], "sqeuclidean"))
        d2 = self.x[rows] @ self.x[columns].T
        d2 *= -2.0
        d2 += self.norms[rows, None]
        d2 += self.norms[columns]
        np.maximum(d2, 0.0, out=d2)
        if rows == columns:
            np.fill_diagonal(d2, 0.0)
        return d2


def bandwidth(x: FloatArray, seed: int) -> float:
    """Return the median squared distance of two rows, the mean where it is 0.

    Of more than 2000 rows it is the median of 2000, drawn by ``seed``.
    """
    sample = x
    if len(x) > EXACT_ROWS:
        rng = np.random.default_rng(seed)
        sample = x[np.sort(rng.choice(len(x), EXACT_ROWS, replace=False))]
    median = _MEDIANS.of(sample)
    return median or 2.0 * float(x.var(axis=0, ddof=1).sum())


class _Medians:
    """Median squared distances of the last samples: several tests and distances ask of one sample.

    A digest of a sample takes a hundredth of the time of its distances.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def of(self, sample: FloatArray) -> float:
        """Return the median squared distance of two rows (N, D)."""
        rows = np.ascontiguousarray(sample)
        digest = hashlib.blake2b(rows.data, salt=str(rows.shape[1]).encode()[:16]).digest()
        found = self._known.get(digest)
        if found is None:
            found = float(np.median(pdist(rows, "sqeuclidean")))
            self._known[digest] = found
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        return found


_MEDIANS = _Medians()


def mean_kernels(d2: RealArray, width: float) -> RealArray:
    """Return the mean of exp(-d2 / (2^b width)), b = -2 ... 2, overwriting the distances d2."""
    power = d2
    power *= -0.25 / width
    np.exp(power, out=power)
    total = power.copy()
    for _ in range(4):  # halving a bandwidth squares its kernel
        np.square(power, out=power)
        total += power
    total *= 0.2
    return total


def kernel_sums(x: FloatArray, weightings: Sequence[FloatArray], width: float) -> list[FloatArray]:
    """Return W' K W (S, S) of each weighting W, K (N, N) the :func:`mean_kernels` of rows x (N, D).

    Args:
        x: (N, D).
        weightings: (N, S) each, the weight of each row in each of S sums; the kernels, which take
            the time, are worked out once for all.
        width: positive.
    """
    distances = SquaredDistances(x)

    def of_rows(i: slice) -> list[FloatArray]:
        sums = [np.zeros((members.shape[1], members.shape[1])) for members in weightings]
        for j in _slices(len(x), _TILE, i.start):
            kernel = mean_kernels(distances.block(i, j), width)
            for total, members in zip(sums, weightings, strict=True):
                tile = members[i].T @ (kernel @ members[j].astype(kernel.dtype))
                total += tile if i == j else tile + tile.T
        return sums

    parts = _each(of_rows, _slices(len(x), _TILE), threads=not distances.exact)
    return [
        np.asarray(np.sum([part[place] for part in parts], axis=0), dtype=np.float64)
        for place in range(len(weightings))
    ]


def nearest(x: FloatArray, groups: IntArray, k: int) -> IntArray | None:
    """Return each row's k nearest rows of other groups, (N, k), ``None`` where one has fewer.

    Args:
        x: (N, D).
        groups: (N,).
        k: less than N.
    """
    distances, every = SquaredDistances(x), slice(0, len(x))

    def of_rows(rows: slice) -> IntArray | None:
        d2 = distances.block(rows, every)
        d2[groups[rows, None] == groups] = np.inf
        found = np.argpartition(d2, k, axis=1)[:, :k].copy()  # not a view of all columns
        return found if np.isfinite(np.take_along_axis(d2, found, axis=1)).all() else None

    panels = _slices(len(x), max(1, _PANEL // len(x)))
    found = [rows for rows in _each(of_rows, panels, not distances.exact) if rows is not None]
    return np.concatenate(found) if len(found) == len(panels) else None


def _slices(n: int, size: int, start: int = 0) -> list[slice]:
    return [slice(first, min(first + size, n)) for first in range(start, n, size)]


def _each(of_rows: Callable[[slice], T], blocks: list[slice], threads: bool) -> list[T]:
    """Return the results of all blocks, in order, computed in one thread or in those of BLAS.

    Each thread then multiplies alone: together they would wait for each other at every block.
    """
    if not threads:
        return [of_rows(rows) for rows in blocks]
    blas = ThreadpoolController().select(user_api="blas")
    workers = max((library["num_threads"] for library in blas.info()), default=1)
    with blas.limit(limits=1), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(of_rows, blocks))
