"""Patients of one domain or of two: who is missing, and who is where no patient may be twice."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice

from daptkit.data.image import Log
from daptkit.data.table import ImageTable, concat_tables
from daptkit.errors import DataError

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Patients who are where others must be.

    Args:
        where: ``"both the source and the target"`` or ``"more than one split of the source"``.
        patients: how many.
        examples: names of two images of a patient each; the user's own, for the terminal only.
    """

    where: str
    patients: int
    examples: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        count = "1 patient is" if self.patients == 1 else f"{self.patients} patients are"
        named = ", ".join(f"'{one}' and '{other}'" for one, other in self.examples)
        return f"{count} in {self.where}, for example those of {named}."


def warn_unknown_patients(table: ImageTable, log: Log) -> None:
    """Tell of images whose patient is not known.

    Args:
        table: images of one domain.
        log: takes the line.
    """
    unknown = sum(not patient for patient in table.patients or ("",) * len(table))
    if unknown:
        log(
            f"warning: {unknown} of {len(table)} images of the {table.domain} have no patient_id; "
            "each counts as a patient of its own, so intervals are image-level and may be too "
            "narrow, and validation may leak. Name the patients in a manifest."
        )


def find_overlaps(sources: Sequence[ImageTable], target: ImageTable | None) -> list[Overlap]:
    """Return each way in which a patient is where another must be.

    A patient in two splits leaks from training into scores; a patient at both sites makes the
    target look nearer than it is. Splits are those of all PATHs of the source together, as
    :func:`concat_tables` joins them. Ids of both sites are compared as they are written.

    Args:
        sources: the tables of each PATH of the source, as read.
        target: that of the target, or ``None``.
    """
    found = [_in_two_splits(concat_tables(sources))] if sources else []
    if target is not None:
        found.append(_in_two_splits(target))
        if sources:
            found.append(_at_both_sites(sources, target))
    return [overlap for overlap in found if overlap.patients]


def refuse_overlap(overlaps: Sequence[Overlap]) -> None:
    """Refuse a patient in two splits or in both domains.

    Args:
        overlaps: what :func:`find_overlaps` found.

    Raises:
        DataError: there is such a patient.
    """
    if overlaps:
        raise DataError(
            " ".join(map(str, overlaps)) + " Each patient belongs in one place; where ids are only"
            " unique within a site, make them differ. --allow-patient-overlap overrules this."
        )


def _in_two_splits(table: ImageTable) -> Overlap:
    first: dict[int, int] = {}
    mixed: dict[int, tuple[str, str]] = {}
    # Groups also hold together the frames of a file whose patient is not known.
    for row, group in enumerate(table.groups().tolist()):
        begun = first.setdefault(group, row)
        if table.splits[begun] != table.splits[row]:
            mixed.setdefault(group, (table.names[begun], table.names[row]))
    return _overlap(f"more than one split of the {table.domain}", mixed.values())


def _at_both_sites(sources: Sequence[ImageTable], target: ImageTable) -> Overlap:
    theirs = {p: target.names[row] for row, p in enumerate(target.patients or ()) if p}
    shared: dict[str, tuple[str, str]] = {}
    for source in sources:
        for row, patient in enumerate(source.patients or ()):
            if patient in theirs:
                shared.setdefault(patient, (source.names[row], theirs[patient]))
    return _overlap(f"both the {sources[0].domain} and the {target.domain}", shared.values())


def _overlap(where: str, examples: Collection[tuple[str, str]]) -> Overlap:
    return Overlap(where=where, patients=len(examples), examples=tuple(islice(examples, _SHOWN)))
