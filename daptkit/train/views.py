"""Augmented views of a frozen run: how they are made, and which one a step takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from daptkit.data import AlignedImages, Augment, ImageSet
from daptkit.data.augment import N_DRAWS
from daptkit.train.device import derive_seed

Rows = npt.NDArray[np.int64]

_STREAM = 5
"""Tells the seeds of views from the others that are derived from the run's seed."""


@dataclass(frozen=True, kw_only=True)
class TrunkViews:
    """Trunk features of V augmented views of the images that a run trains on.

    They are in memory as a whole: 4 V R D' bytes, such as 23 MB a view for 4,571 images and the
    1,280 features of a MobileNetV2, and as much on disk.

    Args:
        features: (V, R, D') float32.
        place: (N,) position in ``features`` of each row of the domain; -1 where it has no view.
    """

    features: Tensor
    place: Rows

    def batch(self, rows: Rows, seed: int) -> Tensor:
        """Return one view of each row.

        Args:
            rows: (n,) rows of the domain, each with views.
            seed: decides, with the row alone, which view it is.

        Returns:
            (n, D').
        """
        chosen = chosen_views(rows, len(self.features), seed)
        return self.features[torch.from_numpy(chosen), torch.from_numpy(self.place[rows])]


def chosen_views(rows: Rows, count: int, seed: int) -> Rows:
    """Return a number below ``count`` for each row, a function of seed and row alone.

    So a step can be asked for directly, and it does not matter how its rows are shared out.
    The function is SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195), modulo ``count``.

    Args:
        rows: (n,) row numbers.
        count: number of views, at least 1.
        seed: from 0 to 2^63 - 1.
    """
    state = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return (state % np.uint64(count)).astype(np.int64)


class ViewImages:
    """One augmented view of some images, read like the images themselves.

    What becomes of an image is a function of seed, view and row, whatever the batches.

    Args:
        images: images of the domain.
        rows: (R,) rows that the view is of.
        augment: what is done to them.
        seed: of the run.
        number: of the view, from 0.
    """

    def __init__(
        self,
        images: ImageSet | AlignedImages,
        rows: Rows,
        augment: Augment,
        seed: int,
        number: int,
    ) -> None:
        self._images, self._rows = images, rows
        self._augment, self._seed, self._number = augment, seed, number
        self._generator = torch.Generator()

    def __len__(self) -> int:
        return len(self._rows)

    def prefetch(self, batches: Iterable[Rows]) -> Iterator[Tensor]:
        """Yield the augmented images (N, C, H, W) of each array of positions in the rows."""
        # The decoder looks ahead, so the batches are read twice: once by it, once here.
        ahead, here = itertools.tee(self._rows[positions] for positions in batches)
        for images, rows in zip(self._images.prefetch(ahead), here, strict=True):
            yield self._augment(images, draws=self._draws(rows))

    def _draws(self, rows: Rows) -> Tensor:
        """Return the random numbers (7, N) of each row."""
        return torch.stack([self._of(row) for row in rows.tolist()], dim=1)

    def _of(self, row: int) -> Tensor:
        self._generator.manual_seed(derive_seed(self._seed, self._number, row, _STREAM))
        return torch.rand(N_DRAWS, generator=self._generator)
