"""The counts and levels of one domain, as plain values."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from daptkit.data.check.facts import ImageFacts
from daptkit.data.check.scan import Scan
from daptkit.data.image import COVARIATES
from daptkit.data.table import ImageTable

PERCENTILES = {"p1": 1.0, "p50": 50.0, "p99": 99.0}
"""Name to percent of the percentiles of the levels."""


def summarise(scan: Scan, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return what one domain is like.

    Counts of classes, splits, sites and patients are of readable images. Percentiles are those of
    an even sample of about a million levels; the smallest and largest level are of every pixel.

    Args:
        scan: the images that were read.
        notes: what was said when they were listed.
    """
    table = scan.table.select(scan.readable)
    facts = [fact for fact in scan.facts if fact is not None]
    names = table.names
    return {
        "images": len(scan.table),
        "readable": len(facts),
        "unreadable": [{"name": name, "reason": reason} for name, reason in scan.unreadable],
        "classes": None if table.labels is None else counted(table.labels),
        "splits": counted(table.splits),
        "classes_by_split": None if table.labels is None else _crossed(table.labels, table.splits),
        "sites": None if table.sites is None else counted(table.sites),
        "patients": _patients(table.patients, len(table)),
        "sizes": [
            {"width": width, "height": height, "images": images}
            for (width, height), images in _common((f.width, f.height) for f in facts)
        ],
        "pixels": _pixels(facts),
        "frames": [
            {"frames": frames, "images": images}
            for frames, images in sorted(Counter(fact.frames for fact in facts).items())
        ],
        "levels": _levels(facts),
        "constant": [name for name, f in zip(names, facts, strict=True) if f.constant],
        "covariates": _covariates(table, facts),
        "notes": list(notes),
    }


def counted(values: Iterable[str]) -> dict[str, int]:
    """Return how often each value is there, by its name; empty text is nothing."""
    counts = Counter(values)
    return {value: counts[value] for value in sorted(counts) if value}


def _common(values: Iterable[tuple[Any, ...]]) -> list[tuple[tuple[Any, ...], int]]:
    """Return each value with its count, the commonest first."""
    return sorted(Counter(values).items(), key=lambda one: (-one[1], one[0]))


def _crossed(labels: Sequence[str], splits: Sequence[str]) -> dict[str, dict[str, int]]:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for label, split in zip(labels, splits, strict=True):
        counts[label][split] += 1
    return {
        label: {split: counts[label][split] for split in sorted(counts[label])}
        for label in sorted(counts)
        if label
    }


def _patients(patients: Sequence[str] | None, images: int) -> dict[str, int]:
    counts = Counter(patient for patient in patients or () if patient)
    return {
        "known": len(counts),
        "images_without": images - sum(counts.values()),
        "most_images": max(counts.values(), default=0),
    }


def _pixels(facts: Sequence[ImageFacts]) -> list[dict[str, Any]]:
    """Return number types, channels and photometric interpretations, the commonest first."""
    bits: Counter[tuple[Any, ...]] = Counter()
    for fact in facts:
        key = pixel_kind(fact)
        bits[key] = max(bits[key], fact.bits)
    return [
        {
            "dtype": kind[0],
            "channels": kind[1],
            "photometric": kind[2],
            "bits": bits[kind] or None,
            "images": images,
        }
        for kind, images in _common(pixel_kind(fact) for fact in facts)
    ]


def pixel_kind(fact: ImageFacts) -> tuple[str, int, str]:
    """Return what images of one scanner share: number type, channels, photometric."""
    return (fact.dtype, fact.channels, fact.photometric)


def _levels(facts: Sequence[ImageFacts]) -> dict[str, dict[str, float]]:
    """Return smallest, largest and percentiles of the levels of each number type."""
    parts: defaultdict[str, list[ImageFacts]] = defaultdict(list)
    for fact in facts:
        parts[fact.dtype].append(fact)
    found = {}
    for dtype, members in sorted(parts.items()):
        sample = np.concatenate([fact.sample for fact in members])
        at = np.percentile(sample, list(PERCENTILES.values()), method="inverted_cdf")
        found[dtype] = {
            "min": min(fact.low for fact in members),
            **dict(zip(PERCENTILES, map(float, at), strict=True)),
            "max": max(fact.high for fact in members),
        }
    return found


def covariate(table: ImageTable, row: int, fact: ImageFacts, name: str) -> str:
    """Return a fact of the acquisition: what the manifest says, else what the file says."""
    column = table.extra.get(name)
    return (column[row] if column else "") or dict(fact.covariates).get(name, "")


def _covariates(table: ImageTable, facts: Sequence[ImageFacts]) -> dict[str, dict[str, int]]:
    found = {
        name: counted(covariate(table, row, fact, name) for row, fact in enumerate(facts))
        for name in COVARIATES
    }
    return {name: counts for name, counts in found.items() if counts}
