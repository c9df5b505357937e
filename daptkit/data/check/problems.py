"""What is wrong with the images of one domain: errors stop ``adapt``, warnings do not."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import numpy as np

from daptkit.data.check.facts import ImageFacts
from daptkit.data.check.scan import Scan
from daptkit.data.labels import class_names, encode_labels
from daptkit.data.patients import warn_unknown_patients
from daptkit.data.splits import train_val_split
from daptkit.data.table import ImageTable, choose_split
from daptkit.errors import DataError

ERROR, WARNING = "error", "warning"

RARE = 10
"""Images below which a class is rare."""

_SHOWN = 3
_VAL_FRACTION = 0.2
_MANY_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Args:
        level: ``"error"`` if ``adapt`` would refuse the data, else ``"warning"``.
        code: short name, the same for the same kind of problem.
        domain: ``"source"``, ``"target"``, or empty for both together.
        message: what is wrong, with examples.
    """

    level: str
    code: str
    domain: str
    message: str

    def to_json(self) -> dict[str, str]:
        """Return plain values."""
        return asdict(self)


Finding: TypeAlias = tuple[str, str, str]
"""Level, code and message."""


def domain_problems(scan: Scan) -> list[Problem]:
    """Return what is wrong within one domain, unreadable images and overlaps aside.

    A source is held against what training asks of it, by the functions that training itself calls.

    Args:
        scan: the images that were read.
    """
    table = scan.table.select(scan.readable)
    facts = [fact for fact in scan.facts if fact is not None]
    checks: list[Callable[[], Iterator[Finding]]] = [
        lambda: _patients(table),
        lambda: _pixels(table, facts),
    ]
    if table.labels is not None:
        labels = table.labels
        checks[:0] = [lambda: _training(table), lambda: _classes(table, labels)]
    return [
        Problem(level=level, code=code, domain=table.domain, message=message)
        for check in checks
        for level, code, message in (check() if len(table) else ())
    ]


def _training(table: ImageTable) -> Iterator[Finding]:
    """Do what a run does before it trains, and yield what it would refuse."""
    try:
        chosen = choose_split(table, None, "train")
        held_out = np.flatnonzero(np.asarray(table.splits) == "val")
        part = table.select(np.union1d(chosen, held_out))
        labels = encode_labels(part, class_names(part.labels))
        rows, _ = train_val_split(part, labels, split=None, val_fraction=_VAL_FRACTION, seed=0)
        if len(np.unique(labels[rows])) < 2:
            raise DataError("the source's training images show fewer than two classes.")
    except DataError as error:
        yield ERROR, "training", str(error)


def _classes(table: ImageTable, labels: Sequence[str]) -> Iterator[Finding]:
    counts = Counter(labels)
    unlabelled = counts.pop("", 0)
    if unlabelled:
        yield WARNING, "unlabelled", f"{count_of(unlabelled, 'image')} without a label."
    rare = sorted(name for name, number in counts.items() if number < RARE)
    if rare:
        named = _listed(f"'{name}' ({counts[name]})" for name in rare)
        hint = (
            " If the folders are patients and not classes, check them with --as target."
            if len(rare) >= _MANY_CLASSES
            else ""
        )
        yield (
            WARNING,
            "rare_classes",
            f"{count_of(len(rare), 'class', 'classes')} of under {RARE} images: {named}.{hint}",
        )
    for split in sorted(set(table.splits) - {""}):
        there = {label for label, own in zip(labels, table.splits, strict=True) if own == split}
        absent = sorted(set(counts) - there)
        if absent:
            named = _listed(f"'{name}'" for name in absent)
            yield WARNING, "absent_classes", f"split '{split}' has no images of {named}."
    for message in alike_texts(counts, _bare, "class names"):
        yield WARNING, "similar_classes", message


def _patients(table: ImageTable) -> Iterator[Finding]:
    said: list[str] = []
    warn_unknown_patients(table, said.append)
    for line in said:
        yield WARNING, "missing_patients", line.removeprefix("warning: ")
    patients = table.patients or ()
    if len(table) >= RARE and len(set(patients)) == 1 and all(patients):
        yield (
            WARNING,
            "one_patient",
            "every image is of one patient; where ids were removed, a constant may be in their "
            "place.",
        )
    if table.labels is not None:
        labels: defaultdict[str, set[str]] = defaultdict(set)
        for patient, label in zip(patients, table.labels, strict=bool(patients)):
            if patient and label:
                labels[patient].add(label)
        several = [patient for patient, own in labels.items() if len(own) > 1]
        if several:
            named = _listed(f"'{patient}'" for patient in several)
            yield (
                WARNING,
                "several_labels",
                f"{count_of(len(several), 'patient')} with images of several classes: {named}.",
            )


def _pixels(table: ImageTable, facts: Sequence[ImageFacts]) -> Iterator[Finding]:
    constant = [n for n, fact in zip(table.names, facts, strict=True) if fact.constant]
    if constant:
        named = _listed(f"'{name}'" for name in constant)
        text = f"{count_of(len(constant), 'constant image')}, with nothing to see: {named}."
        yield WARNING, "constant_images", text
    channels = Counter(fact.channels for fact in facts if fact.channels not in (1, 3))
    if channels:
        each = _listed(f"{number} of {n} channels" for n, number in sorted(channels.items()))
        yield WARNING, "channels", f"images that are neither grey nor RGB: {each}; see --in-chans."
    for code, of in _MIXED.items():
        kinds = Counter(of(fact) for fact in facts)
        if len(kinds) > 1:
            each = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
            yield WARNING, code, f"{code.replace('_', ' ')}: {each}."


_MIXED: dict[str, Callable[[ImageFacts], str]] = {
    "mixed_depths": lambda fact: fact.dtype,
    "mixed_photometrics": lambda fact: fact.photometric,
}


def alike_texts(texts: Iterable[str], key: Callable[[str], str], what: str) -> Iterator[str]:
    """Yield a sentence if different texts have one key.

    Args:
        texts: class names or identifiers.
        key: what is left of a text when what may be a slip is taken away.
        what: what the texts are.
    """
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for text in texts:
        if text:
            groups[key(text)].add(text)
    alike = [sorted(group) for group in groups.values() if len(group) > 1]
    if alike:
        named = _listed(" and ".join(f"'{text}'" for text in group) for group in alike)
        yield f"{what} that differ in case, spaces or zeros alone are taken as different: {named}."


def same_number(text: str) -> str:
    """Return a text without the zeros that begin a number."""
    return text.lstrip("0") or "0" if text.isdecimal() else text


def count_of(number: int, one: str, several: str = "") -> str:
    """Return a number with what it counts."""
    return f"{number} {one}" if number == 1 else f"{number} {several or one + 's'}"


def _bare(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return same_number("".join(letter for letter in folded if letter not in " _-"))


def _listed(parts: Iterable[str]) -> str:
    shown = list(parts)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
