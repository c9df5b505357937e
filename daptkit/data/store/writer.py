"""Adding records to a layout of the decode cache."""

from __future__ import annotations

import threading
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.data.image import Log
from daptkit.data.store.catalog import Catalog, IntArray
from daptkit.data.store.layout import publishing
from daptkit.data.store.limit import LIMIT_VARIABLE, make_room
from daptkit.data.store.shard import KEY_BYTES, index_bytes, write_shard
from daptkit.errors import DaptkitError

SHARD_BYTES = 32 * 2**20
"""Size that a file of records does not exceed, unless one record does."""

SHARD_RECORDS = 1024
"""Most records of a shard: what a killed process can lose."""


class StoreWriter:
    """A context in which records are added; several threads may do so at once.

    Records wait in memory until a shard is full, and at most two shards wait. Writing never fails:
    where nothing can be kept any more, one line says why and further records are dropped.

    Args:
        folder: folder of the layout, held by the caller.
        catalog: takes the shards that are written.
        shape: (C, H, W) of a record.
        dtype: type of a record.
        limit: bytes that the whole cache may take.
        log: takes the line that says why nothing more is kept.
        usable: whether the folder is there at all.

    Attributes:
        kept: number of records written.
    """

    def __init__(
        self,
        folder: Path,
        catalog: Catalog,
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        *,
        limit: int,
        log: Log,
        usable: bool,
    ) -> None:
        self.kept = 0
        self._folder, self._catalog = folder, catalog
        self._shape, self._dtype = shape, dtype
        self._limit, self._log = limit, log
        self._usable = usable
        self._lock = threading.Lock()
        self._publishing = threading.Lock()
        self._batch = _Batch(self._record_bytes)
        self._added: set[bytes] = set()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._publishing:
            self._publish(self._batch)

    def add(self, key: bytes, image: npt.NDArray[Any]) -> None:
        """Keep an image, unless one with that key is there.

        Args:
            key: 32 bytes.
            image: (C, H, W) in the type of the layout.

        Raises:
            ValueError: the key or the image has another size or type.
        """
        if len(key) != KEY_BYTES or image.shape != self._shape or image.dtype != self._dtype:
            raise ValueError(
                f"the layout holds {self._dtype} {self._shape} with keys of {KEY_BYTES} bytes, not"
                f" {image.dtype} {image.shape} with a key of {len(key)}"
            )
        if not self._usable:
            return
        record = np.ascontiguousarray(image).reshape(-1).view(np.uint8)
        crc = zlib.crc32(record.data)
        full = None
        with self._lock:
            if key in self._added:
                return
            self._added.add(key)
            self._batch.append(key, crc, record)
            if self._batch.full:
                # All who add wait here while the shard before this one is still being written.
                self._publishing.acquire()
                full, self._batch = self._batch, _Batch(self._record_bytes)
        if full is not None:
            try:
                self._publish(full)
            finally:
                self._publishing.release()

    @property
    def _record_bytes(self) -> int:
        return int(np.prod(self._shape)) * self._dtype.itemsize

    def _publish(self, batch: _Batch) -> None:
        if not self._usable or not batch.keys:
            return
        root = self._folder.parent
        try:
            with publishing(root):
                # Another process may have written some of them meanwhile.
                batch = batch.rows(np.flatnonzero(self._catalog.find(batch.keys) < 0))
                if not batch.keys:
                    return
                needed = len(batch.keys) * self._record_bytes + index_bytes(len(batch.keys))
                if not make_room(root, self._folder, needed, self._limit):
                    self._stop(_full(self._limit))
                    return
                layout = bytes.fromhex(self._folder.name)
                shard = write_shard(
                    self._folder, layout, batch.keys, batch.crcs, batch.records[: len(batch.keys)]
                )
        except (OSError, DaptkitError) as error:
            self._stop(not_kept(error))
            return
        self._catalog.append(shard, batch.keys)
        self.kept += len(shard)

    def _stop(self, reason: str) -> None:
        self._usable = False
        self._log(reason)


class _Batch:
    """Records of a shard that is not written yet."""

    def __init__(self, record_bytes: int) -> None:
        room = max(1, min(SHARD_RECORDS, SHARD_BYTES // record_bytes))
        self.keys: list[bytes] = []
        self.crcs: list[int] = []
        self.records = np.empty((room, record_bytes), dtype=np.uint8)

    @property
    def full(self) -> bool:
        return len(self.keys) == len(self.records)

    def append(self, key: bytes, crc: int, record: npt.NDArray[np.uint8]) -> None:
        self.records[len(self.keys)] = record
        self.keys.append(key)
        self.crcs.append(crc)

    def rows(self, rows: IntArray) -> _Batch:
        """Return some of the records."""
        if len(rows) == len(self.keys):
            return self
        chosen = _Batch(self.records.shape[1])
        chosen.keys = [self.keys[i] for i in rows]
        chosen.crcs = [self.crcs[i] for i in rows]
        chosen.records = self.records[rows]
        return chosen


def not_kept(error: Exception) -> str:
    """Say that decoded images are not kept, why, and what to do; names no path."""
    cause = error.__cause__ if isinstance(error, DaptkitError) else error
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    return (
        f"decoded images are not kept ({reason}); they are decoded again whenever they are needed."
        " Free space or get permission in the cache's folder, name another with --cache DIR, or"
        " switch it off with --cache off."
    )


def _full(limit: int) -> str:
    return (
        f"the cache of decoded images is full ({limit / 2**30:.3g} GiB); further images are"
        " decoded again whenever they are needed. Raise the limit in the environment variable"
        f" {LIMIT_VARIABLE} (GiB), or make room with 'daptkit data cache --clear'."
    )
