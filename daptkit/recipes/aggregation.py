"""Predictions per patient or study instead of per image."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daptkit.data import ImageTable
from daptkit.errors import DataError, UsageError, did_you_mean
from daptkit.shift import PredictionRule

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

AGGREGATIONS = ("patient", "study")
_COLUMNS = {"patient": "patient_id", "study": "study_id"}
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Units:
    """The patients or studies that the images of a table belong to, in their first order.

    Args:
        kind: ``"patient"`` or ``"study"``.
        names: identifier of each, as the manifest has it.
        members: (N,) number of the unit of each image.
    """

    kind: str
    names: tuple[str, ...]
    members: Ints

    @property
    def sizes(self) -> Ints:
        """Number of images of each unit, (U,)."""
        return np.bincount(self.members, minlength=len(self.names)).astype(np.int64)

    @property
    def first(self) -> Ints:
        """Row of the first image of each unit, (U,)."""
        return np.unique(self.members, return_index=True)[1].astype(np.int64)

    def mean(self, values: Floats) -> Floats:
        """Return the mean over each unit's images: (N, K) to (U, K)."""
        sums = np.zeros((len(self.names), values.shape[1]))
        np.add.at(sums, self.members, values)
        return np.asarray(sums / self.sizes[:, None], dtype=np.float64)


def find_units(table: ImageTable, kind: str) -> Units:
    """Return the patients or studies of a table.

    Args:
        table: images, each with the column ``patient_id`` or ``study_id``.
        kind: ``"patient"`` or ``"study"``. A study belongs to one patient: equal study ids of two
            patients are two studies.

    Raises:
        UsageError: another kind.
        DataError: an image names none.
    """
    if kind not in AGGREGATIONS:
        hint = did_you_mean(kind, AGGREGATIONS)
        raise UsageError(f"--aggregate is patient or study, not {kind!r}.{hint}")
    patients = table.patients or ("",) * len(table)
    ids = patients if kind == "patient" else table.extra.get("study_id", ("",) * len(table))
    missing = [row for row, name in enumerate(ids) if not name]
    if missing:
        raise DataError(
            f"--aggregate {kind}: {len(missing)} of {len(ids)} images have no {_COLUMNS[kind]}, "
            f"the first is '{table.names[missing[0]]}'. Name it in a manifest."
        )
    keys = list(zip(patients, ids, strict=True))
    numbers: dict[tuple[str, str], int] = {}
    members = [numbers.setdefault(key, len(numbers)) for key in keys]
    return Units(
        kind=kind,
        names=tuple(name for _, name in numbers),
        members=np.asarray(members, dtype=np.int64),
    )


def unit_labels(units: Units, labels: Ints, classes: Sequence[str]) -> Ints:
    """Return the class of each unit, (U,).

    Args:
        units: patients or studies.
        labels: (N,) class of each image.
        classes: class names.

    Raises:
        DataError: the images of a unit have several classes.
    """
    found: list[set[int]] = [set() for _ in units.names]
    for member, label in zip(units.members.tolist(), labels.tolist(), strict=True):
        found[member].add(label)
    mixed = [row for row, several in enumerate(found) if len(several) > 1]
    if mixed:
        examples = "; ".join(
            f"'{units.names[row]}' has {', '.join(classes[k] for k in sorted(found[row]))}"
            for row in mixed[:_SHOWN]
        )
        other = " Try --aggregate study." if units.kind == "patient" else ""
        raise DataError(
            f"--aggregate {units.kind}: {len(mixed)} of {len(found)} have images of several "
            f"classes ({examples}), so there is no one label to score against.{other}"
        )
    return np.asarray([one.pop() for one in found], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class UnitProbabilities:
    """Mean calibrated probabilities of each unit: (U, K), under the prior in force and balanced."""

    posterior: Floats
    balanced: Floats


def unit_probabilities(
    units: Units, logits: Floats, rule: PredictionRule, domain: str
) -> UnitProbabilities:
    """Return the means over each unit's images.

    Args:
        units: patients or studies.
        logits: (N, K), uncorrected.
        rule: calibration and priors.
        domain: ``"target"`` or ``"source"``.
    """
    return UnitProbabilities(
        posterior=units.mean(rule.posterior(logits, domain)),
        balanced=units.mean(rule.balanced_posterior(logits)),
    )


def unit_predictions_csv(units: Units, means: UnitProbabilities, rule: PredictionRule) -> str:
    """Return a CSV: id, number of images, one probability a class, prediction and confidence."""
    predicted = rule.choose(means.posterior, means.balanced)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    probabilities = [f"p_{name}" for name in rule.classes]
    writer.writerow([_COLUMNS[units.kind], "images", *probabilities, "prediction", "confidence"])
    for name, size, row, label in zip(
        units.names, units.sizes, means.posterior, predicted, strict=True
    ):
        cells = [f"{value:.6g}" for value in row]
        writer.writerow([name, size, *cells, rule.classes[label], f"{row[label]:.6g}"])
    return out.getvalue()
