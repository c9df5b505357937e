"""Training and validation part of the source: stratified by class, whole patients only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from daptkit.data.image import Log
from daptkit.data.table import ImageTable, Indices, choose_split
from daptkit.errors import DataError


def train_val_split(
    table: ImageTable,
    labels: npt.ArrayLike,
    *,
    split: str | None,
    val_fraction: float,
    seed: int,
    log: Log | None = None,
) -> tuple[Indices, Indices]:
    """Return the rows trained on and held out, both sorted.

    The source's own split ``val`` is held out unless it is trained on, as it is: that no patient is
    in two splits is the matter of :func:`daptkit.data.find_overlaps`. Where there is none, a part
    of the training rows is held out, so that no patient is on both sides, every class stays in
    training, and every class of two or more patients is in validation where that is possible.

    Args:
        table: all images of the source.
        labels: (N,) class number of each.
        split: the split trained on, or ``None`` for ``train`` where it exists, else everything.
        val_fraction: part of each class to hold out, in (0, 1).
        seed: of the draw.
        log: told when the source's ``val`` lacks classes.

    Raises:
        DataError: unknown split, or every class has the images of one patient only.
    """
    numbers = np.asarray(labels, dtype=np.int64)
    members = choose_split(table, split, "train")
    held = np.flatnonzero(np.asarray(table.splits) == "val").astype(np.int64)
    if len(held) and not np.isin(held, members).any():
        absent = np.setdiff1d(numbers[members], numbers[held])
        if len(absent) and log is not None:
            log(f"the source's val split lacks {len(absent)} of its classes.")
        return members, held
    held_mask = hold_out(
        numbers[members], table.groups()[members], fraction=val_fraction, seed=seed
    )
    if not held_mask.any():
        raise DataError(
            "no validation images can be set aside: each class of the source has images of one "
            "patient only. Add patients, or a split 'val'."
        )
    return members[~held_mask], members[held_mask]


def hold_out(
    labels: npt.ArrayLike, groups: npt.ArrayLike, *, fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Choose whole groups so that each class gives about ``fraction`` of its images.

    Classes are served from the rarest to the commonest; patients come in a random order and are
    taken while that brings the class nearer to its share, at least one where the class keeps one.

    Args:
        labels: (N,) class numbers.
        groups: (N,) patient numbers.
        fraction: part of each class, in (0, 1).
        seed: of the order.

    Returns:
        (N,) true for held-out rows.
    """
    numbers, members = np.asarray(labels, np.int64), np.asarray(groups, np.int64)
    order = np.random.default_rng([seed, 1]).permutation(np.unique(members)).tolist()
    classes, sizes = np.unique(numbers, return_counts=True)
    held = _HeldOut(numbers, members)
    of_class: dict[int, list[int]] = {label: [] for label in classes.tolist()}
    for patient in order:
        for label in held.counts[patient]:
            of_class[label].append(patient)
    for size, label in sorted(zip(sizes.tolist(), classes.tolist(), strict=True)):
        share = max(1, round(fraction * size))
        patients = of_class[label]
        for patient in patients:
            if held.images[label] >= share:
                break
            if held.can_take(patient) and held.gap(patient, label, share) < abs(
                held.images[label] - share
            ):
                held.take(patient)
        if not held.images[label]:
            smallest = sorted(patients, key=lambda patient: held.counts[patient][label])
            for patient in filter(held.can_take, smallest):
                held.take(patient)
                break
    return np.isin(members, sorted(held.patients))


class _HeldOut:
    """Patients held out so far, and what that leaves of each class.

    Attributes:
        counts: patient to class to number of images.
        left: patients of each class that are not held out.
        images: held-out images of each class.
        patients: those held out.
    """

    def __init__(self, labels: npt.NDArray[np.int64], groups: npt.NDArray[np.int64]) -> None:
        self.counts: dict[int, Counter[int]] = {}
        for label, group in zip(labels.tolist(), groups.tolist(), strict=True):
            self.counts.setdefault(group, Counter())[label] += 1
        self.left = Counter(label for mine in self.counts.values() for label in mine)
        self.images: Counter[int] = Counter()
        self.patients: set[int] = set()

    def can_take(self, patient: int) -> bool:
        """Whether every class of a patient keeps another patient for training."""
        return patient not in self.patients and all(
            self.left[label] > 1 for label in self.counts[patient]
        )

    def gap(self, patient: int, label: int, share: int) -> int:
        """How far the class would be from its share with the patient held out."""
        return abs(self.images[label] + self.counts[patient][label] - share)

    def take(self, patient: int) -> None:
        """Hold a patient out."""
        self.patients.add(patient)
        self.images.update(self.counts[patient])
        self.left.subtract(self.counts[patient].keys())
