"""Images that are the same, or look the same, within a domain and across two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daptkit.data.check.look import NEAR
from daptkit.data.check.pairs import alike_groups
from daptkit.data.check.scan import Scan
from daptkit.data.refs import FileRef


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """Images of one group.

    Args:
        exact: whether their pixels are the same; else they look alike.
        images: domain and name of each.
        across_domains: whether they are in both domains.
        across_splits: whether two of one domain are in different splits.
        conflicting_labels: whether two of them have different labels.
        one_patient: whether all are known to be of one patient.
    """

    exact: bool
    images: tuple[tuple[str, str], ...]
    across_domains: bool
    across_splits: bool
    conflicting_labels: bool
    one_patient: bool

    @property
    def in_source(self) -> bool:
        """Whether two or more of them are in the source."""
        return sum(domain == "source" for domain, _ in self.images) > 1

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "images": [{"domain": domain, "name": name} for domain, name in self.images],
            "across_domains": self.across_domains,
            "across_splits": self.across_splits,
            "conflicting_labels": self.conflicting_labels,
            "one_patient": self.one_patient,
        }


@dataclass(frozen=True)
class _Image:
    """A readable image among those of all domains."""

    scan: Scan
    row: int

    @property
    def name(self) -> tuple[str, str]:
        return (self.scan.table.domain, self.scan.table.names[self.row])

    @property
    def split(self) -> tuple[str, str]:
        return (self.scan.table.domain, self.scan.table.splits[self.row])

    @property
    def label(self) -> str:
        labels = self.scan.table.labels
        return "" if labels is None else labels[self.row]

    @property
    def patient(self) -> str:
        patients = self.scan.table.patients
        return "" if patients is None else patients[self.row]

    @property
    def source(self) -> Hashable:
        """What frames of one file share."""
        ref = self.scan.table.refs[self.row]
        return ref.path if isinstance(ref, FileRef) else (id(ref.array), ref.row)


def find_duplicates(scans: Sequence[Scan], workers: int | None = None) -> list[Duplicate]:
    """Group the images of all domains that are the same or look alike.

    Constant images are no duplicates, nor are frames of one file of one another. A group of alike
    images has at least two different ones, and lists the copies of each.

    Args:
        scans: one for each domain.
        workers: threads that compare hashes.

    Returns:
        The groups of equal images, then those of alike ones, the largest first.
    """
    images: list[_Image] = []
    keys: list[tuple[object, ...]] = []
    for scan in scans:
        for row, facts in enumerate(scan.facts):
            if facts is not None and not facts.constant:
                images.append(_Image(scan, row))
                keys.append((facts.pixel_key, scan.looks[row].tobytes()))
    same = _grouped(keys)
    looking = [group[0] for group in same if _facts(images[group[0]]).has_look]
    groups = alike_groups(_looks(images, looking), NEAR, workers).tolist() if looking else []
    members = {group[0]: group for group in same}
    alike = [
        [image for position in group for image in members[looking[position]]]
        for group in _grouped(groups)
        if len(group) > 1
    ]
    found = [
        _describe([images[number] for number in sorted(group)], exact=exact)
        for exact, part in ((True, same), (False, alike))
        for group in part
        if len({images[number].source for number in group}) > 1
    ]
    return sorted(found, key=lambda group: (not group.exact, -len(group.images)))


def _facts(image: _Image) -> Any:
    return image.scan.facts[image.row]


def _looks(images: Sequence[_Image], chosen: Iterable[int]) -> Any:
    return np.stack([images[number].scan.looks[images[number].row] for number in chosen])


def _grouped(keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the positions of each distinct key, in order of first appearance."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for position, key in enumerate(keys):
        groups[key].append(position)
    return list(groups.values())


def _describe(images: Sequence[_Image], *, exact: bool) -> Duplicate:
    splits = {image.split for image in images if image.split[1]}
    domains = {image.name[0] for image in images}
    labels = {image.label for image in images if image.label}
    patients = {image.patient for image in images}
    return Duplicate(
        exact=exact,
        images=tuple(image.name for image in images),
        across_domains=len(domains) > 1,
        across_splits=len(splits) > len({domain for domain, _ in splits}),
        conflicting_labels=len(labels) > 1,
        one_patient=len(patients) == 1 and "" not in patients,
    )
