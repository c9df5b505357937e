"""The images of one domain: where they are, and what is known of them."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.data.image import COVARIATES, Log
from daptkit.data.refs import FileRef, Ref, digest_ref
from daptkit.errors import DataError, did_you_mean

Indices = npt.NDArray[np.int64]

EXTRA_COLUMNS = ("study_id", "series_id", *COVARIATES)
"""Optional columns of a manifest beside those that every image has."""

_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class ImageTable:
    """One row per image, in a fixed order.

    Args:
        domain: ``"source"``, ``"target"`` or another name for messages.
        names: what predictions show: a path relative to the user's PATH (with ``#frame``), or
            split and row of an array, ``"train/17"``.
        refs: where the pixels are.
        splits: split of each image, ``""`` if none.
        labels: class name of each image, ``""`` if none; ``None`` for unlabelled images.
        patients: patient of each image as text, ``""`` if unknown; ``None`` if none is known.
        sites: site of each image as text, likewise.
        extra: further columns of a manifest, by a name of :data:`EXTRA_COLUMNS`, as text.
    """

    domain: str
    names: tuple[str, ...]
    refs: tuple[Ref, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    patients: tuple[str, ...] | None = None
    sites: tuple[str, ...] | None = None
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def patients_known(self) -> bool:
        """Whether every image names its patient."""
        return self.patients is not None and all(self.patients)

    def select(self, indices: npt.ArrayLike) -> ImageTable:
        """Return the rows at ``indices``, in their order."""
        rows = np.asarray(indices, dtype=np.int64).tolist()
        columns: dict[str, Any] = {
            name: None if column is None else tuple(column[row] for row in rows)
            for name, column in self._columns().items()
        }
        extra = {name: tuple(column[row] for row in rows) for name, column in self.extra.items()}
        return dataclasses.replace(self, **columns, extra=extra)

    def groups(self) -> Indices:
        """Return a patient number per image, (N,).

        Images of unknown patients get one of their own; frames of one file share it.
        """
        numbers: dict[object, int] = {}
        patients = self.patients or ("",) * len(self)
        keys = [
            patient or (ref.path if isinstance(ref, FileRef) and ref.frame is not None else row)
            for row, (patient, ref) in enumerate(zip(patients, self.refs, strict=True))
        ]
        return np.asarray([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)

    def fingerprint(self) -> str:
        """Return the SHA-256 of pixels, order, names, splits, labels and patients.

        The pixels are the bytes of files and of array rows. No absolute path takes part, so a
        moved folder keeps its fingerprint.
        """
        return self._fingerprint

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """SHA-256 of the bytes of each image's file or array row, 32 bytes each."""
        chunks = [self.refs[row : row + _CHUNK] for row in range(0, len(self), _CHUNK)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = pool.map(lambda refs: [digest_ref(ref) for ref in refs], chunks)
            return tuple(digest for part in parts for digest in part)

    @cached_property
    def _fingerprint(self) -> str:
        total = hashlib.sha256(b"".join(self.digests))
        for name, column in self._columns().items():
            if name != "refs":
                total.update(repr((name, column)).encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def _columns(self) -> dict[str, Any]:
        names = ("names", "refs", "splits", "labels", "patients", "sites")
        return {name: getattr(self, name) for name in names}


def concat_tables(tables: Sequence[ImageTable]) -> ImageTable:
    """Join the tables of several PATHs of one domain.

    A table without splits counts as ``train`` beside one that has them. Equal patient ids are one
    patient, unless every table names its sites and no two share one: then ids are per site. Images
    whose site is not named get one by their PATH: ``"source 1"``, ``"source 2"`` and so on.

    Args:
        tables: at least one; labels are kept where every table has them.

    Raises:
        DataError: no table, or some are labelled and some are not.
    """
    if not tables:
        raise DataError("no images were given; name a folder, manifest or .npz.")
    if len(tables) == 1:
        return tables[0]
    labelled = [table.labels is not None for table in tables]
    if any(labelled) and not all(labelled):
        raise DataError(f"some of the {tables[0].domain} PATHs have labels and some have none.")
    any_split = any(any(table.splits) for table in tables)
    per_site = _sites_are_disjoint(tables)
    parts = [
        dataclasses.replace(
            table,
            splits=table.splits if any(table.splits) or not any_split else ("train",) * len(table),
            patients=_qualified(table) if per_site else table.patients,
        )
        for table in tables
    ]
    return ImageTable(
        domain=tables[0].domain,
        names=tuple(name for part in parts for name in part.names),
        refs=tuple(ref for part in parts for ref in part.refs),
        splits=tuple(split for part in parts for split in part.splits),
        labels=_join([part.labels for part in parts], parts),
        patients=_join([part.patients for part in parts], parts),
        sites=tuple(site for number, part in enumerate(parts, 1) for site in _sites(part, number)),
        extra={
            name: column
            for name in EXTRA_COLUMNS
            if (column := _join([part.extra.get(name) for part in parts], parts)) is not None
        },
    )


def choose_split(table: ImageTable, name: str | None, default: str) -> Indices:
    """Return the rows of a split, (n,) int64.

    Args:
        table: images with their splits.
        name: a split, ``"all"``, or ``None`` for the default.
        default: used where it exists when no name is given; else everything is.

    Raises:
        DataError: no image is in the named split; the message lists those that exist.
    """
    known = sorted({split for split in table.splits if split})
    if name is None:
        name = default if default in known else "all"
    if name == "all":
        return np.arange(len(table), dtype=np.int64)
    if name not in known:
        have = f"it has {', '.join(known)}, or all" if known else "it has no splits; use all"
        raise DataError(
            f"the {table.domain} has no split '{name}': {have}.{did_you_mean(name, known)}"
        )
    return np.flatnonzero(np.asarray(table.splits) == name).astype(np.int64)


def warn_default_split(
    table: ImageTable, name: str | None, default: str, option: str, log: Log
) -> None:
    """Tell that :func:`choose_split` takes everything although there are several splits.

    Args:
        table: images with their splits.
        name: the split that was asked for, or ``None``.
        default: the one that is used where it exists.
        option: how to name another.
        log: takes the line.
    """
    known = sorted({split for split in table.splits if split})
    if name is None and len(known) > 1 and default not in known:
        log(
            f"warning: the {table.domain} has no split '{default}', so all of its images are used"
            f" (it has {', '.join(known)}). Name one with {option}."
        )


def _sites_are_disjoint(tables: Sequence[ImageTable]) -> bool:
    seen: set[str] = set()
    for table in tables:
        sites = set(table.sites or ("",))
        if "" in sites or sites & seen:
            return False
        seen |= sites
    return True


def _sites(table: ImageTable, number: int) -> tuple[str, ...]:
    """Return the site of each image; a PATH's folder name is not used, since reports show sites."""
    stand_in = f"{table.domain} {number}"
    return tuple(site or stand_in for site in table.sites or ("",) * len(table))


def _qualified(table: ImageTable) -> tuple[str, ...] | None:
    if table.patients is None or table.sites is None:
        return None
    return tuple(
        f"{site}/{patient}" if patient else ""
        for site, patient in zip(table.sites, table.patients, strict=True)
    )


def _join(
    columns: Sequence[tuple[str, ...] | None], parts: Sequence[ImageTable]
) -> tuple[str, ...] | None:
    """Chain a column of all parts; a part without it contributes empty text."""
    if all(column is None for column in columns):
        return None
    return tuple(
        value
        for column, part in zip(columns, parts, strict=True)
        for value in (column if column is not None else ("",) * len(part))
    )
