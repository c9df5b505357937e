"""Class names and their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from daptkit.data.table import ImageTable, Indices
from daptkit.errors import DataError

_SHOWN = 5


def class_names(labels: Iterable[str] | None) -> tuple[str, ...]:
    """Return the distinct labels: integers in numeric order, anything else alphabetically.

    Args:
        labels: class name of each image; empty text is no label.

    Raises:
        DataError: fewer than two classes.
    """
    found = {label for label in labels or () if label}
    if not found:
        raise DataError("the source has no labels; training needs at least two classes.")
    if len(found) == 1:
        raise DataError(
            f"the source has one class only, '{next(iter(found))}'; training needs at least two."
        )
    if all(re.fullmatch(r"-?[0-9]+", label) for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def encode_labels(table: ImageTable, classes: Sequence[str]) -> Indices:
    """Return the class number of each image, (N,) int64.

    Args:
        table: labelled images.
        classes: class names in the order of the numbers.

    Raises:
        DataError: an image has no label, or one that is not among the classes.
    """
    if table.labels is None:
        raise DataError(f"the images of the {table.domain} have no labels.")
    missing = [row for row, label in enumerate(table.labels) if not label]
    if missing:
        raise DataError(
            f"{len(missing)} images of the {table.domain} have no label, "
            f"the first is '{table.names[missing[0]]}'. Fill in the label, or choose a split."
        )
    numbers = {name: number for number, name in enumerate(classes)}
    refuse_unknown(table.labels, classes, f"the {table.domain} has")
    return np.asarray([numbers[label] for label in table.labels], dtype=np.int64)


def refuse_unknown(labels: Iterable[str], classes: Sequence[str], has: str) -> None:
    """Refuse labels that are no class.

    Args:
        labels: class names.
        classes: those that are known.
        has: begin of the message, such as ``"the target has"``.

    Raises:
        DataError: some are not among the classes.
    """
    unknown = sorted(set(labels) - set(classes))
    if unknown:
        shown = ", ".join(f"'{name}'" for name in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        count = "an unknown class" if len(unknown) == 1 else f"{len(unknown)} unknown classes"
        raise DataError(f"{has} {count}: {shown}{more}; known are {', '.join(classes)}.")
