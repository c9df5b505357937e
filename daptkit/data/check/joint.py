"""What is wrong with the images of both domains together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from daptkit.data.check.duplicates import Duplicate
from daptkit.data.check.problems import (
    ERROR,
    WARNING,
    Problem,
    alike_texts,
    count_of,
    same_number,
)
from daptkit.data.check.scan import Scan
from daptkit.data.patients import Overlap

_MANY_TIMES = 4.0
"""Ratio of the largest levels at which one window cannot fit both domains."""


def joint_problems(
    scans: Sequence[Scan],
    duplicates: Sequence[Duplicate],
    overlaps: Sequence[Overlap],
    *,
    skip_unreadable: int,
    allow_patient_overlap: bool,
) -> list[Problem]:
    """Return what is wrong with all images together.

    Args:
        scans: one for each domain.
        duplicates: groups of equal and of alike images.
        overlaps: patients who are where others must be.
        skip_unreadable: unreadable images that are tolerated.
        allow_patient_overlap: whether such patients are accepted.
    """
    level = WARNING if allow_patient_overlap else ERROR
    patients = (patient for scan in scans for patient in scan.table.patients or ())
    return [
        *_unreadable(scans, skip_unreadable),
        *(_joint(level, "patient_overlap", str(overlap)) for overlap in overlaps),
        *_duplicates(duplicates),
        *(
            _joint(WARNING, "similar_patients", message)
            for message in alike_texts(patients, same_number, "patient ids")
        ),
        *(_differing_levels(*scans) if len(scans) > 1 else ()),
    ]


def _joint(level: str, code: str, message: str) -> Problem:
    return Problem(level=level, code=code, domain="", message=message)


def _unreadable(scans: Sequence[Scan], tolerated: int) -> Iterator[Problem]:
    failed = sum(len(scan.reasons) for scan in scans)
    if failed:
        level = ERROR if failed > tolerated else WARNING
        message = f"{count_of(failed, 'image')} cannot be read ({tolerated} tolerated)."
        yield _joint(level, "unreadable", message)
    for scan in scans:
        if not scan.readable:
            message = f"no image of the {scan.table.domain} can be read."
            yield _joint(ERROR, "all_unreadable", message)


_KINDS: dict[str, tuple[Callable[[Duplicate], bool], str]] = {
    "across_splits": (lambda g: g.across_splits, "in several splits, so that scores leak"),
    "across_domains": (lambda g: g.across_domains, "in both domains"),
    "conflicting_labels": (lambda g: g.conflicting_labels, "with different labels"),
    "across_patients": (
        lambda g: g.in_source and not (g.one_patient or g.across_splits),
        "not known to be of one patient, so that validation may leak",
    ),
}


def _duplicates(groups: Sequence[Duplicate]) -> Iterator[Problem]:
    for code, (matches, consequence) in _KINDS.items():
        for exact, what in ((True, "equal"), (False, "alike")):
            chosen = [group for group in groups if group.exact == exact and matches(group)]
            if chosen:
                one, other = (name for _, name in chosen[0].images[:2])
                yield _joint(
                    WARNING,
                    f"duplicates_{code}",
                    f"{count_of(len(chosen), 'group')} of {what} images {consequence}; for "
                    f"example '{one}' and '{other}'.",
                )


def _differing_levels(source: Scan, target: Scan) -> Iterator[Problem]:
    """Tell of deep images whose window, fitted to the source, would not fit the target."""
    for kind in ("int", "float"):
        one, other = _largest_level(source, kind), _largest_level(target, kind)
        if min(one, other) > 0 and max(one, other) >= _MANY_TIMES * min(one, other):
            yield _joint(
                WARNING,
                "differing_levels",
                f"levels of deep images reach {one:g} in the source and {other:g} in the target; "
                "one window is used for both. Scale them alike.",
            )


def _largest_level(scan: Scan, kind: str) -> float:
    """Return the largest level of images that need a fitted window; 0 if there are none."""
    levels = (
        max(abs(fact.low), abs(fact.high))
        for fact in scan.facts
        if fact is not None and fact.dtype != "uint8" and not fact.display
        if ("int" in fact.dtype) == (kind == "int")
    )
    return max(levels, default=0.0)
