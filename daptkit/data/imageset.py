"""Decoded images of a table: from the cache, in memory where they fit, or decoded again."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
from torch import Tensor

from daptkit.data.convert import Conversion
from daptkit.data.decoding import Decoder, Failures
from daptkit.data.readers import NO_READERS, Readers
from daptkit.data.refs import FileRef
from daptkit.data.store import DecodeCache, DecodeStore
from daptkit.data.table import ImageTable, Indices
from daptkit.errors import DataError

MEMORY_LIMIT = 4 * 2**30
"""Bytes of decoded images that are kept in memory by default."""

_DECODER = f"1, Pillow {PIL.__version__}"
"""What decodes; the number rises with a change of our own part in it."""

_SHOWN = 5
_LOOK_AHEAD = 4


class ImageSet:
    """The images of a table as model input.

    Every image is decoded once on construction, so that an unreadable one is found there. With a
    cache, images of files are kept there and only those that it does not hold are decoded.
    Without one the result stays in memory if it fits, else images are decoded again when they are
    asked for.

    Args:
        table: which images.
        conversion: how pixels become model input.
        workers: threads that decode; ``None`` for the CPU count, 0 like 1.
        skip_unreadable: unreadable images that are tolerated; they are dropped, never replaced.
        readers: further formats.
        memory_limit: largest size of decoded images that is kept in memory, bytes.
        cache: where decoded images are kept between runs, or ``None``.

    Attributes:
        skipped: (name, reason) of the dropped rows.
        decoded: number of images that were decoded on construction.

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
        cache: DecodeCache | None = None,
    ) -> None:
        if not len(table):
            raise DataError(f"the {table.domain} has no images.")
        self.conversion = conversion
        self.workers = max(1, (os.cpu_count() or 1) if workers is None else workers)
        self._decoder = Decoder(table, conversion, readers)
        self._memory: Tensor | None = None
        self._store: DecodeStore | None = None
        self._slots = np.full(len(table), -1, np.int64)
        # The arrays of an archive are in memory already; a cache would only copy them.
        if cache is not None and all(isinstance(ref, FileRef) for ref in table.refs):
            failures = self._fill_store(cache)
        else:
            failures = self._fill_memory(memory_limit)
        self.skipped = [(table.names[row], reason) for row, reason in failures]
        if len(failures) > skip_unreadable:
            raise DataError(unreadable_message(table.domain, self.skipped, skip_unreadable))
        if len(failures) == len(table):
            raise DataError(f"every image of the {table.domain} is unreadable.")
        if failures:
            self._drop([row for row, _ in failures])

    def __len__(self) -> int:
        return len(self.table)

    @property
    def table(self) -> ImageTable:
        """The readable rows of the table."""
        return self._decoder.table

    @property
    def in_memory(self) -> bool:
        """Whether the decoded images are kept in memory."""
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
        waiting: deque[_Batch] = deque()
        pool = ThreadPoolExecutor(self.workers)
        try:
            for rows in batches:
                waiting.append(self._begin(np.asarray(rows, dtype=np.int64), pool))
                if len(waiting) > _LOOK_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, rows: Indices, pool: ThreadPoolExecutor) -> _Batch:
        """Start reading a batch: stored images at once, the others one by one."""
        out = np.empty((len(rows), *self._decoder.shape), self.conversion.dtype)
        slots = self._slots[rows]
        jobs = [
            pool.submit(self._decode_into, out, position, int(rows[position]))
            for position in np.flatnonzero(slots < 0).tolist()
        ]
        if len(jobs) < len(rows):
            jobs.append(pool.submit(self._read_stored, rows, slots, out))
        return _Batch(out, jobs)

    def _read_stored(self, rows: Indices, slots: Indices, out: npt.NDArray[Any]) -> None:
        assert self._store is not None
        for position in self._store.read(slots, out).tolist():
            self._decode_into(out, position, int(rows[position]))

    def _decode_into(self, out: npt.NDArray[Any], position: int, row: int) -> None:
        out[position] = self._decoder.row(row)

    def _fill_memory(self, limit: int) -> Failures:
        count = len(self.table)
        size = int(np.prod(self._decoder.shape)) * self.conversion.dtype.itemsize
        self.decoded = count
        if count * size > limit:
            return self._decoder.check(np.arange(count), None, self.workers)
        out = np.empty((count, *self._decoder.shape), self.conversion.dtype)

        def keep(rows: Indices, images: npt.NDArray[Any]) -> None:
            out[rows] = images

        failures = self._decoder.check(np.arange(count), keep, self.workers)
        self._memory = torch.from_numpy(out)
        return failures

    def _fill_store(self, cache: DecodeCache) -> Failures:
        keys = _keys(self.table, self._decoder.readers)
        self._store = cache.open(
            self.conversion.to_json(), self._decoder.shape, self.conversion.dtype
        )
        self._slots = self._store.find(keys)
        missing = np.flatnonzero(self._slots < 0)
        self.decoded = len(missing)
        if not len(missing):
            return []
        with self._store.writer() as writer:

            def keep(rows: Indices, images: npt.NDArray[Any]) -> None:
                for row, image in zip(rows, images, strict=True):
                    writer.add(keys[row], image)

            failures = self._decoder.check(missing, keep, self.workers)
        self._slots = self._store.find(keys)
        return failures

    def _drop(self, rows: list[int]) -> None:
        good = np.setdiff1d(np.arange(len(self.table)), rows)
        self._decoder = Decoder(self.table.select(good), self.conversion, self._decoder.readers)
        self._slots = self._slots[good]
        if self._memory is not None:
            self._memory = self._memory[torch.from_numpy(good)]


class _Batch:
    """A batch that is being read."""

    def __init__(self, out: npt.NDArray[Any], jobs: list[Future[None]]) -> None:
        self._out, self._jobs = out, jobs

    def result(self) -> Tensor:
        for job in self._jobs:
            job.result()
        return torch.from_numpy(self._out)


def to_float(images: Tensor) -> Tensor:
    """Return images in [0, 1]: uint8 is divided by 255, floats pass."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _keys(table: ImageTable, readers: Readers) -> list[bytes]:
    """Return what an image's pixels depend on beside the conversion: file, frame and decoder.

    The conversion names readers too, but only those of the images that it was fitted to.
    """
    decoders = {one.name: f"{one.name} {one.to_json()}" for one in readers.formats}
    keys = []
    for digest, ref in zip(table.digests, table.refs, strict=True):
        assert isinstance(ref, FileRef)
        found = readers.find(ref.path)
        decoder = _DECODER if found is None else decoders[found.name]
        keys.append(hashlib.sha256(digest + f"{ref.frame} {decoder}".encode()).digest())
    return keys


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
