"""Decoded images of a table, in memory where they fit."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from daptkit.data.convert import Conversion, convert_image, convert_rows
from daptkit.data.readers import NO_READERS, Readers
from daptkit.data.refs import ArrayRef, FileRef, decode_ref
from daptkit.data.table import ImageTable, Indices
from daptkit.errors import DataError

MEMORY_LIMIT = 4 * 2**30
"""Bytes of decoded images that are kept in memory by default."""

_SHOWN = 5
_CHUNK = 32
_ARRAY_CHUNK = 1024
_LOOK_AHEAD = 4

Failures = list[tuple[int, str]]


class ImageSet:
    """The images of a table as model input.

    Every image is decoded once on construction, so that an unreadable one is found there. The
    result stays in memory if it fits, else images are decoded again when they are asked for.

    Args:
        table: which images.
        conversion: how pixels become model input.
        workers: threads that decode; ``None`` for the CPU count, 0 like 1.
        skip_unreadable: unreadable images that are tolerated; they are dropped, never replaced.
        readers: further formats.
        memory_limit: largest size of decoded images that is kept, bytes.

    Attributes:
        table: the readable rows of the table.
        skipped: (name, reason) of the dropped rows.

    Raises:
        DataError: no image, or more unreadable ones than tolerated; names and reasons are given.
    """

    def __init__(
        self,
        table: ImageTable,
        conversion: Conversion,
        *,
        workers: int | None = None,
        skip_unreadable: int = 0,
        readers: Readers = NO_READERS,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        if not len(table):
            raise DataError(f"the {table.domain} has no images.")
        self.conversion = conversion
        self.workers = max(1, (os.cpu_count() or 1) if workers is None else workers)
        self._readers = readers
        self._memory: Tensor | None = None
        size = conversion.in_chans * conversion.img_size**2 * conversion.dtype.itemsize
        keep = len(table) * size <= memory_limit
        out = np.empty((len(table), *self._shape), conversion.dtype) if keep else None
        failures = self._decode_all(table, out)
        self.skipped = [(table.names[row], reason) for row, reason in failures]
        if len(failures) > skip_unreadable:
            raise DataError(unreadable_message(table.domain, self.skipped, skip_unreadable))
        if len(failures) == len(table):
            raise DataError(f"every image of the {table.domain} is unreadable.")
        if failures:
            good = np.setdiff1d(np.arange(len(table)), [row for row, _ in failures])
            table = table.select(good)
            out = None if out is None else out[good]
        self.table = table
        if out is not None:
            self._memory = torch.from_numpy(out)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def in_memory(self) -> bool:
        """Whether the decoded images are kept."""
        return self._memory is not None

    def batch(self, indices: npt.ArrayLike) -> Tensor:
        """Return images by row.

        Args:
            indices: (n,) rows of ``table``.

        Returns:
            (n, C, H, W) on the CPU, uint8, or float32 in [0, 1].
        """
        return next(self.prefetch([np.asarray(indices, dtype=np.int64)]))

    def prefetch(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """Yield the images of each batch of rows; threads decode ahead of what is consumed.

        Args:
            batches: (n,) rows of ``table`` each; read up to four batches ahead.
        """
        if self._memory is not None:
            for rows in batches:
                yield self._memory[torch.from_numpy(np.asarray(rows, dtype=np.int64))]
            return
        waiting: deque[list[Future[npt.NDArray[Any]]]] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for rows in batches:
                waiting.append([pool.submit(self._decode_row, int(row)) for row in rows])
                if len(waiting) > _LOOK_AHEAD:
                    yield self._collect(waiting.popleft())
            while waiting:
                yield self._collect(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def _shape(self) -> tuple[int, int, int]:
        size = self.conversion.img_size
        return (self.conversion.in_chans, size, size)

    def _collect(self, futures: list[Future[npt.NDArray[Any]]]) -> Tensor:
        out = np.empty((len(futures), *self._shape), self.conversion.dtype)
        for row, future in enumerate(futures):
            out[row] = future.result()
        return torch.from_numpy(out)

    def _decode_row(self, row: int) -> npt.NDArray[Any]:
        try:
            return convert_image(decode_ref(self.table.refs[row], self._readers), self.conversion)
        except DataError as error:  # readable on construction: it changed since
            raise DataError(f"'{self.table.names[row]}' is no longer readable: {error}") from error

    def _decode_all(self, table: ImageTable, out: npt.NDArray[Any] | None) -> Failures:
        """Decode every row, into ``out`` if there is one, and return the rows that failed."""
        with ThreadPoolExecutor(self.workers) as pool:
            parts = list(
                pool.map(lambda rows: self._decode_chunk(table, rows, out), _chunks(table))
            )
        return [failure for part in parts for failure in part]

    def _decode_chunk(
        self, table: ImageTable, rows: range, out: npt.NDArray[Any] | None
    ) -> Failures:
        refs = table.refs[rows.start : rows.stop]
        whole = _one_array(refs)
        if whole is not None and whole.dtype == np.uint8 and not self.conversion.windows:
            # No row of such an array fails alone, so it needs no look at each.
            return self._convert_array(whole, rows, out)
        failures: Failures = []
        for row, ref in zip(rows, refs, strict=True):
            try:
                image = convert_image(decode_ref(ref, self._readers), self.conversion)
            except DataError as error:
                failures.append((row, str(error)))
            else:
                if out is not None:
                    out[row] = image
        return failures

    def _convert_array(
        self, pixels: npt.NDArray[Any], rows: range, out: npt.NDArray[Any] | None
    ) -> Failures:
        try:
            converted = convert_rows(pixels, self.conversion)
        except DataError as error:
            return [(row, str(error)) for row in rows]
        if out is not None:
            out[rows.start : rows.stop] = converted
        return []


def to_float(images: Tensor) -> Tensor:
    """Return images in [0, 1]: uint8 is divided by 255, floats pass."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _chunks(table: ImageTable) -> Iterator[range]:
    """Cut the rows into runs of files and of rows of one array."""
    start = 0
    for key, run in groupby(table.refs, lambda r: None if isinstance(r, FileRef) else id(r.array)):
        count = sum(1 for _ in run)
        step = _CHUNK if key is None else _ARRAY_CHUNK
        for first in range(start, start + count, step):
            yield range(first, min(first + step, start + count))
        start += count


def _one_array(refs: tuple[FileRef | ArrayRef, ...]) -> npt.NDArray[Any] | None:
    """Return the rows of the array that a chunk refers to; ``None`` for files."""
    first = refs[0]
    if not isinstance(first, ArrayRef):
        return None
    rows = [ref.row for ref in refs if isinstance(ref, ArrayRef)]
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return first.array[rows[0] : rows[0] + len(rows)]
    return np.asarray(first.array[rows])


def unreadable_message(domain: str, failed: list[tuple[str, str]], tolerated: int) -> str:
    """Say which images cannot be read and why.

    Args:
        domain: name for the message.
        failed: (name, reason) of each.
        tolerated: how many the user accepts.
    """
    lines = [f"  '{name}': {reason}" for name, reason in failed[:_SHOWN]]
    if len(failed) > _SHOWN:
        lines.append(f"  and {len(failed) - _SHOWN} more")
    images = "image" if len(failed) == 1 else "images"
    return (
        f"{len(failed)} unreadable {images} in the {domain} ({tolerated} tolerated):\n"
        + "\n".join(lines)
        + "\nRepair or remove them, or tolerate them with --skip-unreadable."
    )
