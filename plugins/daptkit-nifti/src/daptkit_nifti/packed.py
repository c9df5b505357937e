"""The bytes of a file, unpacked where they are gzip.

A thread keeps the content of the last packed file, so that the slices of one file are unpacked
once and not once for each slice. Larger ones are unpacked for each.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from daptkit.errors import DataError

KEPT_BYTES = 256 * 2**20
"""Largest unpacked content that a thread keeps."""

_CHUNK = 2**20


class _Kept(threading.local):
    key: tuple[object, ...] = ()
    content: bytes = b""


_kept = _Kept()


def is_gzip(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is packed by gzip."""
    return start[:2] == b"\x1f\x8b"


@contextlib.contextmanager
def gunzip_errors() -> Iterator[None]:
    """Turn what unpacking raises into a reason.

    Raises:
        DataError: the packed data end early or are damaged.
    """
    try:
        yield
    except EOFError as error:
        raise DataError("truncated: its gzip data end early") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DataError("damaged: its gzip data do not unpack") from error


@contextlib.contextmanager
def unpacked(path: Path, size: int) -> Iterator[io.BufferedIOBase]:
    """Open the content of a file of at least ``size`` bytes, unpacked.

    Packed data are read to their end, where their check sum is: damage is found in any slice.

    Raises:
        DataError: the file is shorter, or its packed data are damaged.
    """
    with path.open("rb") as file:
        if not is_gzip(file.read(2)):
            _check_size(os.fstat(file.fileno()).st_size, size)
            yield file
            return
    if size <= KEPT_BYTES:
        yield io.BytesIO(_content(path, size))
        return
    with gunzip_errors(), gzip.open(path) as stream:
        try:
            yield stream
        except ValueError as error:  # nibabel's word for too few bytes
            raise DataError(f"truncated: less than {size:,} bytes") from error
        _check_size(stream.tell() + _drain(stream), size)


def _content(path: Path, size: int) -> bytes:
    status = path.stat()
    key = (path, status.st_mtime_ns, status.st_size, size)
    if _kept.key != key:
        _kept.key, _kept.content = (), b""
        with gunzip_errors(), gzip.open(path) as stream:
            content = stream.read(size)
            _drain(stream)
        _check_size(len(content), size)
        _kept.key, _kept.content = key, content
    return _kept.content


def _drain(stream: io.BufferedIOBase) -> int:
    """Read to the end and return how many bytes there were."""
    total = 0
    while chunk := stream.read(_CHUNK):
        total += len(chunk)
    return total


def _check_size(found: int, wanted: int) -> None:
    if found < wanted:
        raise DataError(f"truncated: {found:,} of {wanted:,} bytes")
