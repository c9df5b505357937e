"""Held-out source and target logits that the estimate of the target prior rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from daptkit.errors import DataError
from daptkit.method import DomainBatch, FitContext
from daptkit.shift import cross_fitted_logits

SMALL_CLASS = 20
"""Held-out images of the rarest class below which cross-fitting replaces source validation."""
PSEUDO_COUNT = 1.0
"""Laplace shrinkage of a confusion matrix that rests on few images."""
FOLDS = 5

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ShiftEvidence:
    """Arguments of :func:`daptkit.shift.estimate_prior`, N held-out source and M target images.

    Args:
        source_logits: (N, K), by a model that has not seen the labels of these images.
        source_labels: (N,).
        source_weights: (N,) class weights that model was trained under.
        source_groups: (N,) patients.
        source_features: (N, D) that the logits are made of.
        target_logits: (M, K), by the same model.
        target_groups: (M,) patients.
        target_features: (M, D).
        kind: ``"held-out"``, ``"source-only"``, ``"cross-fitted"`` or ``"small"``.
    """

    source_logits: FloatArray
    source_labels: IntArray
    source_weights: FloatArray
    source_groups: IntArray
    source_features: FloatArray
    target_logits: FloatArray
    target_groups: IntArray
    target_features: FloatArray
    kind: str

    @property
    def pseudo_count(self) -> float:
        """Laplace shrinkage of the confusion matrix."""
        return PSEUDO_COUNT if self.kind == "small" else 0.0


def held_out(ctx: FitContext) -> ShiftEvidence:
    """Predict source validation and target with the model as it is."""
    return _of_model(ctx.predict("source_val"), ctx.predict("target"), ctx.num_classes, "held-out")


def source_only(ctx: FitContext) -> ShiftEvidence | None:
    """Predict source validation and target with the source-only model; ``None`` without one."""
    source, target = ctx.source_only("source_val"), ctx.source_only("target")
    if source is None or target is None:
        return None
    return _of_model(source, target, ctx.num_classes, "source-only")


def _of_model(
    source: DomainBatch, target: DomainBatch, num_classes: int, kind: str
) -> ShiftEvidence:
    labels = _labels(source)
    rarest = int(np.bincount(labels, minlength=num_classes).min())
    return ShiftEvidence(
        source_logits=_floats(source.logits),
        source_labels=labels,
        source_weights=_floats(source.weights),
        source_groups=_ints(source.groups),
        source_features=_floats(source.features),
        target_logits=_floats(target.logits),
        target_groups=_ints(target.groups),
        target_features=_floats(target.features),
        kind=kind if rarest >= SMALL_CLASS else "small",
    )


def cross_fitted(ctx: FitContext) -> ShiftEvidence:
    """Cross-fit a linear classifier on the frozen trunk over all source images.

    A frozen trunk has seen no source label, so training and validation images both serve, each
    predicted by folds without its patient.

    Raises:
        DataError: fewer than 2 patients or classes in the source.
    """
    layers = ("features", "trunk")
    parts = [ctx.predict(split, layers) for split in ("source_train", "source_val")]
    target = ctx.predict("target", layers)
    labels = np.concatenate([_labels(part) for part in parts])
    groups = np.concatenate([_ints(part.groups) for part in parts])
    trunk = np.concatenate([_trunk(part) for part in parts])
    logits, predict = cross_fitted_logits(
        trunk, labels, groups, folds=FOLDS, seed=ctx.seed, num_classes=ctx.num_classes
    )
    target_trunk = _trunk(target)
    return ShiftEvidence(
        source_logits=logits,
        source_labels=labels,
        source_weights=np.ones(len(labels)),
        source_groups=groups,
        source_features=trunk,
        target_logits=predict(target_trunk),
        target_groups=_ints(target.groups),
        target_features=target_trunk,
        kind="cross-fitted",
    )


def _trunk(batch: DomainBatch) -> FloatArray:
    return _floats(batch.taps["trunk"].flatten(1))


def _labels(batch: DomainBatch) -> IntArray:
    if batch.labels is None:
        raise DataError("bbse needs labelled source images; give --source with class labels.")
    return _ints(batch.labels)


def _floats(values: Tensor) -> FloatArray:
    return np.asarray(values.detach().cpu().double().numpy(), dtype=np.float64)


def _ints(values: Tensor) -> IntArray:
    return np.asarray(values.detach().cpu().numpy(), dtype=np.int64)
