"""The decode cache as a run sees it: open a layout, find, read and add images."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.data.image import Log
from daptkit.data.store.catalog import Catalog, IntArray
from daptkit.data.store.layout import hold_layout, layout_name
from daptkit.data.store.limit import cache_limit, decoded_folder
from daptkit.data.store.shard import Bytes, mark_damaged
from daptkit.data.store.writer import StoreWriter, not_kept


class DecodeCache:
    """Decoded images of all layouts, in one folder that several processes may use at once.

    Args:
        root: the folder, made when needed; ``None`` for the user's cache.
        limit: bytes that it may take; ``None`` for ``$DAPTKIT_CACHE_LIMIT``, else 20 GiB.
        log: takes lines on what is not kept or is damaged, each once; they name no path.

    Raises:
        UsageError: ``$DAPTKIT_CACHE_LIMIT`` is malformed.
    """

    def __init__(
        self, root: Path | None = None, *, limit: int | None = None, log: Log = lambda line: None
    ) -> None:
        self.root = decoded_folder() if root is None else Path(root)
        self.limit = cache_limit() if limit is None else limit
        # Both domains of a run meet the same full disk: a cached call says each line once.
        self._log = cache(log)
        self._stores: dict[str, DecodeStore] = {}

    def open(
        self, conversion: Mapping[str, Any], shape: Sequence[int], dtype: npt.DTypeLike
    ) -> DecodeStore:
        """Return the layout of a conversion; the same one whenever it is asked for again.

        A folder that cannot be used gives a layout that holds and keeps nothing, and a line.

        Args:
            conversion: JSON values that say how pixels become the record.
            shape: (C, H, W) of a record.
            dtype: type of a record.
        """
        channels, height, width = shape
        extent, kind = (channels, height, width), np.dtype(dtype)
        folder = self.root / layout_name(conversion, extent, kind)
        if folder.name not in self._stores:
            self._stores[folder.name] = DecodeStore(
                folder, extent, kind, limit=self.limit, log=self._log
            )
        return self._stores[folder.name]

    def close(self) -> None:
        """Let go of the layouts, so that others may remove them; so does the end of the process."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()


class DecodeStore:
    """The decoded images of one layout, which is not removed while this object lives.

    Safe to use from several threads, and while other processes use and extend the same layout.

    Args:
        folder: folder of the layout.
        shape: (C, H, W) of a record.
        dtype: type of a record.
        limit: bytes that the whole cache may take.
        log: takes lines on what is not kept or is damaged.

    Attributes:
        damaged: number of records found damaged.
    """

    def __init__(
        self,
        folder: Path,
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        *,
        limit: int,
        log: Log,
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.damaged = 0
        self._folder, self._limit, self._log = folder, limit, log
        record_bytes = int(np.prod(shape)) * dtype.itemsize
        self._catalog = Catalog(folder, record_bytes, log)
        try:
            self._catalog.handles.append(hold_layout(folder))
            self._usable = True
        except OSError as error:
            self._usable = False
            log(not_kept(error))
        self._finish = weakref.finalize(self._catalog, _close, self._catalog.handles)

    def find(self, keys: Sequence[bytes]) -> IntArray:
        """Return where images are, those that other processes have added meanwhile included.

        Args:
            keys: n keys of 32 bytes.

        Returns:
            (n,) slots, -1 where there is no such image. They stay valid.

        Raises:
            ValueError: a key has not 32 bytes.
        """
        return self._catalog.find(keys)

    def read(self, slots: IntArray, out: npt.NDArray[Any]) -> IntArray:
        """Copy images into rows of an array; neighbours in order cost one call of the system.

        Args:
            slots: (n,) from :meth:`find`; a row whose slot is -1 is left as it is.
            out: (n, C, H, W) contiguous, in the type of the layout.

        Returns:
            The rows (m,), rising, whose image turned out to be damaged or unreadable: the caller
            decodes them again. Mostly empty.

        Raises:
            ValueError: ``out`` has another shape or type, or is not contiguous.
        """
        if (
            out.shape != (len(slots), *self.shape)
            or out.dtype != self.dtype
            or not out.flags.c_contiguous
        ):
            raise ValueError(f"out is not a contiguous {self.dtype} (n, {self.shape})")
        if not len(slots):
            return np.empty(0, dtype=np.int64)
        records = out.reshape(len(slots), -1).view(np.uint8)
        shards, firsts = self._catalog.locate(slots)
        damaged = [
            begin + row
            for begin, end in _runs(slots, shards)
            if slots[begin] >= 0
            for row in self._read_run(int(shards[begin]), int(firsts[begin]), records[begin:end])
        ]
        if damaged:
            self.damaged += len(damaged)
            self._log(
                "the cache of decoded images holds damaged or unreadable ones, which are decoded"
                " again; look at the disk if this comes back"
            )
        return np.asarray(damaged, dtype=np.int64)

    def writer(self) -> StoreWriter:
        """Return a context in which images are added; afterwards :meth:`find` knows them."""
        return StoreWriter(
            self._folder,
            self._catalog,
            self.shape,
            self.dtype,
            limit=self._limit,
            log=self._log,
            usable=self._usable,
        )

    def close(self) -> None:
        """Let go of the layout; nothing may be read afterwards."""
        self._finish()

    def _read_run(self, number: int, first: int, out: Bytes) -> Sequence[int]:
        shard = self._catalog.shard(number)
        try:
            damaged = shard.read(first, out)
        except OSError:  # removed by hand, or no permission: not damaged, but not there either
            return range(len(out))
        if damaged:
            mark_damaged(shard.records)
        return damaged


def _runs(slots: IntArray, shards: IntArray) -> Iterator[tuple[int, int]]:
    """Cut rows where the next image does not follow the one before in the same shard."""
    cuts = np.flatnonzero((np.diff(slots) != 1) | (np.diff(shards) != 0)) + 1
    bounds = [0, *cuts.tolist(), len(slots)]
    return pairwise(bounds)


def _close(handles: list[int]) -> None:
    while handles:
        os.close(handles.pop())
