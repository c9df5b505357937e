"""The two domains of a run, ready to be batched: decoded images or cached trunk features."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from daptkit.data import AlignedImages, Augment, ImageSet, batch_indices, to_float
from daptkit.data.augment import N_DRAWS
from daptkit.method import TaskInfo
from daptkit.train.device import derive_seed
from daptkit.train.transfer import Parts, to_device
from daptkit.train.views import TrunkViews

Rows = npt.NDArray[np.int64]

_CHUNK = 256
_CHUNK_VALUES = _CHUNK * 3 * 160 * 160
"""Rows, and values of their inputs, of one forward of a whole-split pass."""

_VIEW_CHOICE = 4
"""Tells the seeds that choose views from the others that are derived for a step."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The images of one domain.

    Args:
        images: decoded images, or these as a method changes them; row i of everything else is row i
            of ``images.table``.
        groups: (N,) patient number of each image; one per image where patients are unknown.
        labels: (N,) class indices of source images; ``None`` for the target, always.
        trunk: (N, D') cached trunk features of a frozen run, else ``None``.
        views: cached trunk features of augmented views, which training then reads; whole-split
            passes read ``trunk``.
    """

    images: ImageSet | AlignedImages
    groups: Rows
    labels: Rows | None = None
    trunk: Tensor | None = None
    views: TrunkViews | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def chunk(self) -> int:
        """Rows of one forward of a whole-split pass; fewer where images are large."""
        if self.trunk is not None:
            return _CHUNK
        size = self.images.conversion.img_size
        return min(_CHUNK, max(1, _CHUNK_VALUES // (self.images.conversion.in_chans * size**2)))

    def chunks(self, rows: Rows) -> Iterator[Rows]:
        """Yield ``rows`` in order, as many at a time as one forward of a whole-split pass takes."""
        for start in range(0, len(rows), self.chunk):
            yield rows[start : start + self.chunk]

    def inputs(self, batches: Iterator[Rows]) -> Iterator[Tensor]:
        """Yield the model's inputs of each batch of rows, on the CPU.

        Trunk features, or images as they are kept: uint8, or floats in [0, 1]. What is kept in 8
        bit becomes float on the device, since bytes are the smaller transfer.
        """
        if self.trunk is not None:
            for rows in batches:
                yield self.trunk[torch.from_numpy(rows)]
        else:
            yield from self.images.prefetch(batches)

    def training_inputs(
        self, batches: Iterator[Rows], *, seed: int, stream: int, start: int
    ) -> Iterator[Tensor]:
        """Yield the inputs of steps from ``start``, before any augmentation of images.

        Which view of an image a step takes is a function of seed, stream, step and row, so that a
        resumed run continues bit for bit and methods are compared on the same views.
        """
        if self.views is None:
            yield from self.inputs(batches)
            return
        for step, rows in enumerate(batches, start=start):
            yield self.views.batch(rows, derive_seed(seed, step, stream, _VIEW_CHOICE))


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """Both domains and the rows that each part of the run uses.

    Args:
        source, target: the domains.
        train_rows, val_rows: rows of the source that are trained on and held out.
        target_rows: rows of the target that are adapted to.
        task: classes and sizes.
        augment: augmentation of both domains, or ``None`` for cached features.
    """

    source: Domain
    target: Domain
    train_rows: Rows
    val_rows: Rows
    target_rows: Rows
    task: TaskInfo
    augment: Augment | None

    @property
    def from_trunk(self) -> bool:
        """Whether inputs are cached trunk features."""
        return self.source.trunk is not None

    def split(self, name: str) -> tuple[Domain, Rows]:
        """Return domain and rows of ``source_train``, ``source_val`` or ``target``."""
        parts = {
            "source_train": (self.source, self.train_rows),
            "source_val": (self.source, self.val_rows),
            "target": (self.target, self.target_rows),
        }
        if name not in parts:
            raise ValueError(f"unknown split '{name}'; known: {', '.join(parts)}")
        return parts[name]


def class_shares(labels: Rows, num_classes: int) -> Tensor:
    """Return the share of each class among labels (N,), (K,) float32 summing to 1."""
    counts = torch.bincount(torch.from_numpy(labels), minlength=num_classes).double()
    return (counts / counts.sum()).float()


@dataclass(frozen=True)
class DomainInputs:
    """Inputs of one domain for one step, on the device."""

    inputs: Tensor
    rows: Tensor
    groups: Tensor
    labels: Tensor | None


def training_batches(
    data: TaskData,
    *,
    start: int,
    stop: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    with_target: bool,
    rank: int = 0,
    size: int = 1,
    parts: int = 1,
) -> Iterator[tuple[DomainInputs, DomainInputs | None]]:
    """Yield source and target inputs of steps ``start`` to ``stop``.

    Order and augmentation are functions of seed, domain and step alone, so a run that resumes sees
    what it would have seen, and the source images of a seed do not depend on the method. Process
    ``rank`` of ``size`` gets its share of the same batches, changed in the same way: of each of the
    equal ``parts`` of a batch, one after the other, so that what a part holds in all processes
    together does not depend on their number.
    """
    sharing: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "own": lambda values: _share(values, rank, size, parts),
    }
    source = _domain_batches(data, "source_train", 0, start, stop, **sharing)
    if not with_target:
        for batch in source:
            yield batch, None
        return
    target = _domain_batches(data, "target", 1, start, stop, **sharing)
    yield from zip(source, target, strict=True)


def _domain_batches(
    data: TaskData,
    split: str,
    stream: int,
    start: int,
    stop: int,
    *,
    batch_size: int,
    seed: int,
    device: torch.device,
    own: Callable[[Any], Any],
) -> Iterator[DomainInputs]:
    domain, members = data.split(split)
    # The decoder looks ahead, so the order is read twice: once by it, once here.
    ahead, orders = itertools.tee(
        members[own(batch_indices(len(members), batch_size, seed=seed, stream=stream, step=step))]
        for step in range(start, stop)
    )
    generator = torch.Generator(device)
    read = domain.training_inputs(ahead, seed=seed, stream=stream, start=start)
    moved = to_device(_parts(domain, orders, read), device)
    for step, (inputs, rows, groups, labels) in enumerate(moved, start=start):
        assert inputs is not None and rows is not None and groups is not None
        if data.augment is not None:
            # What becomes of an image must not depend on who else has a share of the batch.
            generator.manual_seed(derive_seed(seed, step, stream))
            draws = torch.rand(N_DRAWS, batch_size, generator=generator, device=device)
            inputs = data.augment(inputs, draws=own(draws))
        else:
            inputs = to_float(inputs)
        yield DomainInputs(inputs=inputs, rows=rows, groups=groups, labels=labels)


def _share(values: Any, rank: int, size: int, parts: int) -> Any:
    """Return the share of a process of (..., B) values, an array or a tensor: (..., B / size)."""
    lead = values.shape[:-1]
    return values.reshape(*lead, parts, size, -1)[..., rank, :].reshape(*lead, -1)


def _parts(domain: Domain, orders: Iterator[Rows], read: Iterator[Tensor]) -> Generator[Parts]:
    """Yield inputs, rows, groups and labels of each batch, on the CPU."""
    for rows, inputs in zip(orders, read, strict=True):
        labels = None if domain.labels is None else torch.from_numpy(domain.labels[rows])
        yield inputs, torch.from_numpy(rows), torch.from_numpy(domain.groups[rows]), labels
