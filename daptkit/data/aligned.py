"""Images as a method changes them, read like the images themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from daptkit.data.convert import Conversion
from daptkit.data.imageset import MEMORY_LIMIT, ImageSet, to_float
from daptkit.data.table import ImageTable, Indices

_CHUNK = 64


class AlignedImages:
    """The images of a set after a method, as deep as they were: 8-bit images are rounded to 8 bit.

    Args:
        original: the images as they are.
        align: maps (n, C, H, W) float32 in [0, 1] on the CPU to the same; what becomes of an image
            depends on it alone.
        fingerprint: hash of what ``align`` depends on.
        keep: whether the changed images are made once, here, and kept in memory where they fit;
            else they are made again whenever they are asked for.
        memory_limit: largest size that is kept, bytes.
    """

    def __init__(
        self,
        original: ImageSet,
        align: Callable[[Tensor], Tensor],
        *,
        fingerprint: str,
        keep: bool,
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self.original = original
        self.fingerprint = fingerprint
        self._align = align
        self._memory: Tensor | None = None
        if keep:
            self._fill(memory_limit)

    def __len__(self) -> int:
        return len(self.original)

    @property
    def table(self) -> ImageTable:
        """The readable rows of the table."""
        return self.original.table

    @property
    def conversion(self) -> Conversion:
        """How pixels became the original images."""
        return self.original.conversion

    @property
    def in_memory(self) -> bool:
        """Whether the changed images are kept in memory."""
        return self._memory is not None

    def batch(self, indices: npt.ArrayLike) -> Tensor:
        """Return images by row; see :meth:`daptkit.data.ImageSet.batch`."""
        return next(self.prefetch([np.asarray(indices, dtype=np.int64)]))

    def prefetch(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """Yield the images of each batch of rows; see :meth:`daptkit.data.ImageSet.prefetch`."""
        if self._memory is None:
            yield from map(self._changed, self.original.prefetch(batches))
            return
        for rows in batches:
            yield self._memory[torch.from_numpy(np.asarray(rows, dtype=np.int64))]

    def _changed(self, images: Tensor) -> Tensor:
        found = self._align(to_float(images))
        if images.dtype == torch.uint8:
            return found.mul(255).round_().to(torch.uint8)
        return found

    def _fill(self, limit: int) -> None:
        first = self.original.batch([0])
        if len(self) * first.numel() * first.element_size() > limit:
            return
        kept = first.new_empty((len(self), *first.shape[1:]))
        starts = range(0, len(self), _CHUNK)
        rows = (np.arange(s, min(s + _CHUNK, len(self)), dtype=np.int64) for s in starts)
        for start, images in zip(starts, self.original.prefetch(rows), strict=True):
            kept[start : start + len(images)] = self._changed(images)
        self._memory = kept
