"""The label-free evidence of one model: what it says of held-out source and of target images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_labels, as_matrix
from daptkit.shift.prediction import PredictionRule

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Posteriors of one model on N held-out source and M target images of K classes.

    Args:
        labels: (N,) true classes of the source images; the target has none.
        source_posterior: (N, K) under the source's prior, rows summing to 1.
        target_posterior: (M, K) as delivered on the target, corrected for its prior or not.
        source_decisions: (N,) classes by the rule that decides on the target.
        source_balanced: (N,) the same under the balanced rule.
        source_shared: (N, K) posterior by a map that is the same for both domains.
        target_shared: (M, K) likewise.
        source_groups: (N,) patients, numbered from 0.
        target_groups: (M,) likewise.
    """

    labels: IntArray
    source_posterior: FloatArray
    target_posterior: FloatArray
    source_decisions: IntArray
    source_balanced: IntArray
    source_shared: FloatArray
    target_shared: FloatArray
    source_groups: IntArray
    target_groups: IntArray

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return int(self.source_posterior.shape[1])

    @property
    def units(self) -> int:
        """Number of independent units (patients, else images) of the domain that has fewer."""
        return 1 + int(min(self.source_groups.max(), self.target_groups.max()))

    @property
    def target_predicted(self) -> IntArray:
        """Most probable class of each target image, (M,)."""
        return np.asarray(self.target_posterior.argmax(axis=1), dtype=np.int64)


def sample_of(
    source_posterior: npt.ArrayLike,
    labels: npt.ArrayLike,
    target_posterior: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
) -> Sample:
    """Return the evidence of a model that maps images of both domains by one rule.

    Args:
        source_posterior: (N, K) calibrated, rows summing to 1.
        labels: (N,) true classes of the source images.
        target_posterior: (M, K), by the same map.
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients; one per image if ``None``.

    Raises:
        DataError: arrays of wrong shape or not finite, or rows that are no distributions.
    """
    source = as_posterior(source_posterior, "source posterior")
    target = as_posterior(target_posterior, "target posterior")
    if source.shape[1] != target.shape[1]:
        raise DataError(
            f"the source has {source.shape[1]} classes, the target posterior {target.shape[1]}."
        )
    decided = source.argmax(axis=1).astype(np.int64)
    return Sample(
        labels=as_labels(labels, len(source), source.shape[1]),
        source_posterior=source,
        target_posterior=target,
        source_decisions=decided,
        source_balanced=decided,
        source_shared=source,
        target_shared=target,
        source_groups=as_groups(source_groups, len(source)),
        target_groups=as_groups(target_groups, len(target)),
    )


def sample_under_rule(
    rule: PredictionRule,
    source_logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    target_logits: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
) -> Sample:
    """Return the evidence of a model whose logits become predictions by ``rule``.

    Confidences are those of each domain under its own prior. Recalls are measured with the target's
    decisions, since a corrected prior moves them, and priors from posteriors without correction.

    Args:
        rule: calibration, priors and decision rule.
        source_logits: (N, K) of held-out source images.
        labels: (N,) their true classes.
        target_logits: (M, K).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients; one per image if ``None``.

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    source, target = as_matrix(source_logits), as_matrix(target_logits)
    return Sample(
        labels=as_labels(labels, len(source), source.shape[1]),
        source_posterior=rule.posterior(source, "source"),
        target_posterior=rule.posterior(target, "target"),
        source_decisions=rule.predict(source, "target", decide="map"),
        source_balanced=rule.predict(source, "target", decide="balanced"),
        source_shared=np.exp(rule.calibration.log_posterior(source)),
        target_shared=np.exp(rule.calibration.log_posterior(target)),
        source_groups=as_groups(source_groups, len(source)),
        target_groups=as_groups(target_groups, len(target)),
    )


def as_posterior(values: npt.ArrayLike, name: str) -> FloatArray:
    """Return class probabilities (N, K) whose rows sum to 1.

    Raises:
        DataError: wrong shape, not finite, negative, or rows that do not sum to 1.
    """
    p = as_matrix(values, name)
    if (p < 0).any() or (np.abs(p.sum(axis=1) - 1.0) > 1e-3).any():
        raise DataError(f"rows of the {name} must be probabilities that sum to 1.")
    return np.asarray(p / p.sum(axis=1, keepdims=True), dtype=np.float64)


def as_heads(predictions: npt.ArrayLike, n: int, num_classes: int, name: str) -> IntArray:
    """Return the classes (H, N) that each of H heads gives to N images.

    Raises:
        DataError: wrong shape, or a class outside 0 ... K-1.
    """
    heads = np.asarray(predictions, dtype=np.int64)
    if heads.ndim != 2 or heads.shape[1] != n:
        raise DataError(f"{name} must have shape (heads, {n}), not {heads.shape}.")
    if heads.size and (heads.min() < 0 or heads.max() >= num_classes):
        raise DataError(f"{name} hold classes outside 0..{num_classes - 1}.")
    return heads
