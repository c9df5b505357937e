"""Groups of alike hashes among many, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Pairs: TypeAlias = npt.NDArray[np.int64]
Groups: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = Sequence[npt.NDArray[np.uint64]]

_ROWS, _COLUMNS = 64, 4096
_FIRST = 2
_MANY = 2**14
"""Pairs that are thinned out to those that connect the same hashes."""


def alike_groups(hashes: npt.NDArray[np.uint64], most: int, workers: int | None = None) -> Groups:
    """Number the groups of hashes that are connected by pairs with few differing bits.

    All pairs are compared, in blocks; memory grows with N alone.

    Args:
        hashes: (N, W) words of 64 bits.
        most: bits that differ between two that are alike, at most.
        workers: threads; ``None`` for the CPU count, 0 like 1.

    Returns:
        (N,) group numbers.
    """
    # Equal hashes are one: a thousand copies of an image would be half a million pairs.
    distinct, places = np.unique(hashes, axis=0, return_inverse=True)
    words = [np.ascontiguousarray(column) for column in distinct.T]
    groups: Groups = np.arange(len(distinct))
    waiting: list[Pairs] = []
    threads = max(1, (os.cpu_count() or 1) if workers is None else workers)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(distinct), _ROWS * threads):
            firsts = range(start, min(start + _ROWS * threads, len(distinct)), _ROWS)
            known = groups
            waiting += pool.map(lambda row: _pairs_from(words, known, row, most), firsts)  # noqa: B023
            if sum(map(len, waiting)) > _MANY:
                groups, waiting = _joined(groups, waiting), []
    return _joined(groups, waiting)[places.reshape(-1)]


def _pairs_from(words: Words, groups: Groups, first: int, most: int) -> Pairs:
    """Return pairs (i, j) of two groups, i among 64 rows and j after it, that are alike."""
    parts = [np.empty((0, 2), np.int64)]
    for pairs in _blocks(words, groups, first, most):
        parts.append(pairs if len(pairs) < _MANY else _thinned(pairs))
    return np.concatenate(parts)


def _blocks(words: Words, groups: Groups, first: int, most: int) -> Iterator[Pairs]:
    rows = slice(first, first + _ROWS)
    for start in range(first, len(groups), _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        # Half of the bits rule out nearly every pair.
        differing = sum(
            np.bitwise_count(word[rows, np.newaxis] ^ word[columns]) for word in words[:_FIRST]
        )
        i, j = np.nonzero(differing <= most)
        i, j = i + first, j + start
        new = (i < j) & (groups[i] != groups[j])
        i, j = i[new], j[new]
        total = sum(np.bitwise_count(word[i] ^ word[j]).astype(np.int64) for word in words)
        yield np.stack([i, j], axis=1)[total <= most]


def _joined(groups: Groups, pairs: Sequence[Pairs]) -> Groups:
    """Return the groups after joining those that pairs connect."""
    return _components(np.concatenate([_spanning(groups), *pairs]), len(groups))


def _thinned(pairs: Pairs) -> Pairs:
    """Return fewer pairs that connect the same nodes."""
    nodes, places = np.unique(pairs, return_inverse=True)
    return nodes[_spanning(_components(places.reshape(-1, 2), len(nodes)))]


def _components(pairs: Pairs, count: int) -> Groups:
    """Return the connected component of each of ``count`` nodes, (count,)."""
    ends = (np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1]))
    graph = coo_array(ends, shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _spanning(groups: Groups) -> Pairs:
    """Return the fewest pairs that connect the groups: each node with its group's first."""
    _, firsts, numbers = np.unique(groups, return_index=True, return_inverse=True)
    pairs = np.stack([firsts[numbers.reshape(-1)], np.arange(len(groups))], axis=1)
    return np.asarray(pairs[pairs[:, 0] != pairs[:, 1]], dtype=np.int64)
