"""A shard of the decode cache: a file of records, and the index that vouches for them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.run import atomic_write

KEY_BYTES = 32
"""Length of a record's key."""

KEY_DTYPE = np.dtype(f"S{KEY_BYTES}")
"""Keys (n,) as an array; equal and ordered like the bytes, since all have the same length."""

RECORDS, INDEX, DAMAGED = ".bin", ".idx", ".bad"
"""Ends of the names of a shard's records, of its index, and of the mark of a damaged shard."""

_MAGIC = b"daptimg1"
_HEADER = struct.Struct("<8s32sQQ")  # magic, layout, number of records, bytes of a record
_CHECKSUM_BYTES = 32
_CRC = np.dtype("<u4")

Bytes = npt.NDArray[np.uint8]
Keys = npt.NDArray[np.bytes_]


class Shard:
    """Records of a file, read by number.

    Args:
        records: the file.
        crcs: (n,) checksum of each record.
        record_bytes: size of a record.
    """

    def __init__(self, records: Path, crcs: npt.NDArray[np.uint32], record_bytes: int) -> None:
        self.records = records
        self.record_bytes = record_bytes
        self._crcs = crcs
        self._sound = np.zeros(len(crcs), dtype=bool)
        self._handle: int | None = None

    def __len__(self) -> int:
        return len(self._crcs)

    def keep_open(self) -> int:
        """Open the file once for all reads and return the handle, which the caller closes."""
        self._handle = os.open(self.records, os.O_RDONLY)
        return self._handle

    def read(self, first: int, out: Bytes) -> list[int]:
        """Copy neighbouring records; each is checked the first time it is read.

        Args:
            first: number of the first record.
            out: (n, record_bytes) contiguous; filled.

        Returns:
            The rows of ``out`` whose record is damaged or cut off; their content is undefined.

        Raises:
            OSError: the file cannot be opened or read.
        """
        whole = self._read_bytes(out.data.cast("B"), first * self.record_bytes)
        whole //= self.record_bytes
        return [
            row
            for row in range(len(out))
            if row >= whole or not (self._sound[first + row] or self._check(first + row, out[row]))
        ]

    def _check(self, record: int, content: Bytes) -> bool:
        sound = zlib.crc32(content.data) == self._crcs[record]
        self._sound[record] = sound
        return bool(sound)

    def _read_bytes(self, out: memoryview, offset: int) -> int:
        if self._handle is not None:
            return _read_fully(self._handle, out, offset)
        handle = os.open(self.records, os.O_RDONLY)
        try:
            return _read_fully(handle, out, offset)
        finally:
            os.close(handle)


def write_shard(
    folder: Path, layout: bytes, keys: Sequence[bytes], crcs: Sequence[int], records: Bytes
) -> Shard:
    """Write records and then their index, each under a temporary name first.

    Args:
        folder: folder of the layout.
        layout: 32 bytes that name the layout; an index is refused by any other.
        keys: n keys of 32 bytes.
        crcs: n checksums.
        records: (n, record_bytes).

    Raises:
        DaptkitError: the disk is full, or there is no permission; nothing of the shard stays.
    """
    path = folder / f"{uuid.uuid4().hex}{RECORDS}"
    sums = np.asarray(crcs, dtype=_CRC)
    header = _HEADER.pack(_MAGIC, layout, len(keys), records.shape[1])
    content = header + b"".join(keys) + sums.tobytes()
    try:
        atomic_write(path, records.tobytes())
        atomic_write(path.with_suffix(INDEX), content + hashlib.sha256(content).digest())
    except BaseException:
        # An OSError here would hide the one that matters.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return Shard(path, sums, records.shape[1])


def mark_damaged(shard: Path) -> None:
    """Leave a mark, so that a shard is ignored from now on and removed when nobody uses it.

    Where nothing can be written, the next run finds the damage again.

    Args:
        shard: a file of it.
    """
    with contextlib.suppress(OSError):
        shard.with_suffix(DAMAGED).touch()


def index_bytes(count: int) -> int:
    """Return the size of the index of that many records."""
    return _HEADER.size + count * (KEY_BYTES + _CRC.itemsize) + _CHECKSUM_BYTES


def count_records(size: int) -> int:
    """Return how many records an index of that many bytes describes."""
    return max(0, size - index_bytes(0)) // (KEY_BYTES + _CRC.itemsize)


def read_shard(index: Path, layout: bytes, record_bytes: int) -> tuple[Shard, Keys]:
    """Read an index.

    Args:
        index: the file.
        layout: 32 bytes that name the layout.
        record_bytes: size of a record of that layout.

    Returns:
        The shard, and its keys (n,) in the order of its records.

    Raises:
        ValueError: the index is damaged or of another layout, or its records are cut short.
        OSError: a file cannot be read.
    """
    data = index.read_bytes()
    content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if len(content) < _HEADER.size or hashlib.sha256(content).digest() != checksum:
        raise ValueError("the index is damaged")
    magic, owner, count, size = _HEADER.unpack_from(content)
    if (magic, owner, size) != (_MAGIC, layout, record_bytes) or len(data) != index_bytes(count):
        raise ValueError("the index belongs to another layout")
    records = index.with_suffix(RECORDS)
    if records.stat().st_size != count * record_bytes:
        raise ValueError("records are missing")
    keys = np.frombuffer(content, KEY_DTYPE, count, _HEADER.size)
    crcs: npt.NDArray[Any] = np.frombuffer(content, _CRC, count, _HEADER.size + keys.nbytes)
    return Shard(records, crcs, record_bytes), keys


def _read_fully(handle: int, out: memoryview, offset: int) -> int:
    done = 0
    while done < len(out):
        got = os.preadv(handle, [out[done:]], offset + done)
        if not got:
            break
        done += got
    return done
