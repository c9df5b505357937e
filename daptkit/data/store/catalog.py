"""Which record of which shard holds which key, as far as this process has looked."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from daptkit.data.image import Log
from daptkit.data.store.layout import layout_files
from daptkit.data.store.shard import (
    DAMAGED,
    INDEX,
    KEY_BYTES,
    KEY_DTYPE,
    Keys,
    Shard,
    mark_damaged,
    read_shard,
)

_OPEN_FILES = 128

IntArray = npt.NDArray[np.int64]


class Catalog:
    """The shards of a layout; records are numbered through all of them, in slots.

    Slots stay valid: shards are only ever added. Safe to use from several threads.

    Args:
        folder: folder of the layout.
        record_bytes: size of a record.
        log: takes a line where damaged shards are passed over.
    """

    def __init__(self, folder: Path, record_bytes: int, log: Log) -> None:
        self.handles: list[int] = []
        self._folder = folder
        self._record_bytes = record_bytes
        self._log = log
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._shards: list[Shard] = []
        self._parts: list[Keys] = []
        self._starts: IntArray = np.zeros(1, dtype=np.int64)
        self._keys: Keys = np.empty(0, KEY_DTYPE)
        self._slots: IntArray = np.empty(0, np.int64)

    def append(self, shard: Shard, keys: Sequence[bytes]) -> None:
        """Take a shard that this process wrote, unless a search has met it already."""
        with self._lock:
            if shard.records.stem not in self._seen:
                self._seen.add(shard.records.stem)
                self._take(shard, to_array(keys))

    def find(self, keys: Sequence[bytes]) -> IntArray:
        """Return the slots (n,) of keys of 32 bytes, -1 for those that are not there."""
        with self._lock:
            ignored = self._refresh()
            if self._parts:
                self._sort()
            known, slots = self._keys, self._slots
        if ignored:
            self._log(
                f"damaged parts of the cache of decoded images were passed over: {ignored}; their"
                " images are decoded again"
            )
        wanted = to_array(keys)
        if not len(known):
            return np.full(len(wanted), -1, np.int64)
        place = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return np.where(known[place] == wanted, slots[place], -1)

    def locate(self, slots: IntArray) -> tuple[IntArray, IntArray]:
        """Return the numbers (n,) of the shards that slots lie in, and of their records there.

        A slot of -1 lies in no shard: its numbers mean nothing.
        """
        starts = self._starts
        shards = np.searchsorted(starts, slots, side="right") - 1
        return shards, slots - starts[shards]

    def shard(self, number: int) -> Shard:
        """Return a shard by number."""
        return self._shards[number]

    def _refresh(self) -> int:
        """Take the shards that are new since the last look; return how many were damaged."""
        files = layout_files(self._folder)
        passed = {path.stem for path in files if path.suffix == DAMAGED} | self._seen
        new = [p for p in files if p.suffix == INDEX and p.stem not in passed]
        return [self._read(path) for path in new].count(False)

    def _read(self, index: Path) -> bool:
        """Take the shard of an index; a damaged one is marked and passed over."""
        self._seen.add(index.stem)
        try:
            shard, keys = read_shard(index, bytes.fromhex(self._folder.name), self._record_bytes)
        except ValueError:
            mark_damaged(index)
            return False
        except OSError:  # its records are gone or may not be read
            return False
        self._take(shard, keys)
        return True

    def _take(self, shard: Shard, keys: Keys) -> None:
        if len(self.handles) < _OPEN_FILES:
            # Where it fails, reading tries again and says why.
            with contextlib.suppress(OSError):
                self.handles.append(shard.keep_open())
        self._shards.append(shard)
        self._parts.append(keys)

    def _sort(self) -> None:
        """Put the keys in order; a dictionary would find them too, in five times the memory."""
        total = int(self._starts[-1])
        fresh = np.concatenate(self._parts)
        keys = np.concatenate([self._keys, fresh])
        slots = np.concatenate([self._slots, np.arange(total, total + len(fresh))])
        order = np.argsort(keys, kind="stable")
        self._keys, self._slots = keys[order], slots[order]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)], dtype=np.int64)
        self._parts = []


def to_array(keys: Sequence[bytes]) -> Keys:
    """Return keys as an array (n,).

    Raises:
        ValueError: a key has not 32 bytes.
    """
    if any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"a key has {KEY_BYTES} bytes")
    return np.frombuffer(b"".join(keys), KEY_DTYPE)
