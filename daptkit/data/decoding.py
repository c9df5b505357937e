"""Decoding the rows of a table into the model's input, in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.data.convert import Conversion, convert_image, convert_rows
from daptkit.data.readers import Readers
from daptkit.data.refs import ArrayRef, FileRef, Ref, decode_ref
from daptkit.data.table import ImageTable, Indices
from daptkit.errors import DataError

_CHUNK = 32
_ARRAY_CHUNK = 1024

Failures = list[tuple[int, str]]
"""Rows that cannot be read, with the reason."""

Keep = Callable[[Indices, npt.NDArray[Any]], None]
"""Takes rows (n,) and their images (n, C, S, S); called from several threads."""


class Decoder:
    """Reads rows of a table as model input.

    Args:
        table: which images.
        conversion: how pixels become model input.
        readers: further formats.
    """

    def __init__(self, table: ImageTable, conversion: Conversion, readers: Readers) -> None:
        self.table = table
        self.conversion = conversion
        self.readers = readers

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, S, S) of an image."""
        size = self.conversion.img_size
        return (self.conversion.in_chans, size, size)

    def row(self, row: int) -> npt.NDArray[Any]:
        """Decode one row that was readable before.

        Returns:
            (C, S, S) in the conversion's type.

        Raises:
            DataError: it no longer is; the message names the image.
        """
        try:
            return convert_image(decode_ref(self.table.refs[row], self.readers), self.conversion)
        except DataError as error:
            name = self.table.names[row]
            raise DataError(f"'{name}' is no longer readable: {error}") from error

    def check(self, rows: Indices, keep: Keep | None, workers: int) -> Failures:
        """Decode rows and hand over the readable ones.

        Args:
            rows: (n,) rows of the table, rising.
            keep: takes what was decoded; ``None`` to look at readability alone.
            workers: threads.
        """
        chunks = _chunks(self.table.refs, rows)
        with ThreadPoolExecutor(workers) as pool:
            parts = list(pool.map(lambda chunk: self._check_chunk(chunk, keep), chunks))
        return [failure for part in parts for failure in part]

    def _check_chunk(self, rows: Indices, keep: Keep | None) -> Failures:
        refs = [self.table.refs[row] for row in rows]
        whole = _one_array(refs)
        if whole is not None and whole.dtype == np.uint8 and not self.conversion.windows:
            # No row of such an array fails alone, so it needs no look at each.
            return self._check_array(whole, rows, keep)
        failures: Failures = []
        for row, ref in zip(rows, refs, strict=True):
            try:
                image = convert_image(decode_ref(ref, self.readers), self.conversion)
            except DataError as error:
                failures.append((int(row), str(error)))
            else:
                if keep is not None:
                    keep(np.asarray([row]), image[None])
        return failures

    def _check_array(self, pixels: npt.NDArray[Any], rows: Indices, keep: Keep | None) -> Failures:
        try:
            converted = convert_rows(pixels, self.conversion)
        except DataError as error:
            return [(int(row), str(error)) for row in rows]
        if keep is not None:
            keep(rows, converted)
        return []


def _chunks(refs: tuple[Ref, ...], rows: Indices) -> Iterator[Indices]:
    """Cut the rows into runs of files and of rows of one array."""

    def array_of(row: np.int64) -> int | None:
        ref = refs[row]
        return None if isinstance(ref, FileRef) else id(ref.array)

    for key, run in groupby(rows, array_of):
        members = np.fromiter(run, np.int64)
        step = _CHUNK if key is None else _ARRAY_CHUNK
        for first in range(0, len(members), step):
            yield members[first : first + step]


def _one_array(refs: list[Ref]) -> npt.NDArray[Any] | None:
    """Return the rows of the array that a chunk refers to; ``None`` for files."""
    first = refs[0]
    if not isinstance(first, ArrayRef):
        return None
    rows = [ref.row for ref in refs if isinstance(ref, ArrayRef)]
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return first.array[rows[0] : rows[0] + len(rows)]
    return np.asarray(first.array[rows])
