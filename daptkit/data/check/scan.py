"""Reading every image of a table once, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from daptkit.data.check.facts import ImageFacts, image_facts
from daptkit.data.check.look import WORDS, look_hash
from daptkit.data.readers import Readers
from daptkit.data.refs import decode_ref
from daptkit.data.table import ImageTable
from daptkit.errors import DataError

Looks: TypeAlias = npt.NDArray[np.uint64]

_CHUNK = 32
_SAMPLES = 2**20
"""Levels kept of a whole table, about; at least 16 and at most 4,096 of a channel of an image."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A table whose images were read.

    Args:
        table: the images.
        facts: what each is like; ``None`` where it cannot be read.
        looks: their perceptual hashes, (N, 4); zero where the facts have none.
        reasons: row to reason, for images that cannot be read; no path in it.
    """

    table: ImageTable
    facts: tuple[ImageFacts | None, ...]
    looks: Looks
    reasons: Mapping[int, str]

    @property
    def readable(self) -> list[int]:
        """Rows of the images that could be read."""
        return [row for row, fact in enumerate(self.facts) if fact is not None]

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """Name and reason of the others."""
        return [(self.table.names[row], reason) for row, reason in self.reasons.items()]


def scan_table(
    table: ImageTable,
    readers: Readers,
    *,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> Scan:
    """Read every image of a table once.

    Args:
        table: which images.
        readers: further formats.
        workers: threads that decode; ``None`` for the CPU count, 0 like 1.
        advance: told how many images of the table are behind.
    """
    samples = min(4096, max(16, _SAMPLES // max(1, len(table))))
    found: list[ImageFacts | str] = []
    looks = np.zeros((len(table), WORDS), np.uint64)
    chunks = [
        range(first, min(first + _CHUNK, len(table))) for first in range(0, len(table), _CHUNK)
    ]
    pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) if workers is None else workers))
    try:
        for part in pool.map(lambda rows: _scan_rows(table, rows, readers, samples, looks), chunks):
            found += part
            advance(len(found))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return Scan(
        table=table,
        facts=tuple(None if isinstance(one, str) else one for one in found),
        looks=looks,
        reasons={row: one for row, one in enumerate(found) if isinstance(one, str)},
    )


def _scan_rows(
    table: ImageTable, rows: range, readers: Readers, samples: int, looks: Looks
) -> list[ImageFacts | str]:
    """Return what each image is like, or why it cannot be read; fill in the hashes."""
    found: list[ImageFacts | str] = []
    for row in rows:
        try:
            image = decode_ref(table.refs[row], readers)
        except DataError as error:
            found.append(str(error))
            continue
        facts = image_facts(image, samples)
        found.append(facts)
        if facts.has_look:
            looks[row] = look_hash(image)
    return found
