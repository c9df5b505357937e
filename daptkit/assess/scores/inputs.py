"""What a label-free score is computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daptkit.assess.accuracy.sample import as_posterior
from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_labels, as_prior
from daptkit.shift.divergence import matrices


@dataclass(frozen=True, kw_only=True)
class ScoreInputs:
    """One candidate on M target and N held-out source images; made by :func:`score_inputs`.

    Args:
        target_posterior: (M, K), rows summing to 1.
        source_posterior: (N, K), by the same map.
        source_labels: (N,) classes.
        source_groups: (N,) patients, numbered from 0.
        target_groups: (M,) patients, numbered from 0.
        source_features: (N, D), or ``None``.
        target_features: (M, D), or ``None``.
        target_prior: (K,) trusted estimate of the target's prior, or ``None``.
        seed: of what a score draws.
    """

    target_posterior: FloatArray
    source_posterior: FloatArray
    source_labels: IntArray
    source_groups: IntArray
    target_groups: IntArray
    source_features: FloatArray | None
    target_features: FloatArray | None
    target_prior: FloatArray | None
    seed: int

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return int(self.target_posterior.shape[1])

    @property
    def target_predicted(self) -> IntArray:
        """Most probable class of each target image, (M,)."""
        return np.asarray(self.target_posterior.argmax(axis=1), dtype=np.int64)


def score_inputs(
    target_posterior: npt.ArrayLike,
    source_posterior: npt.ArrayLike,
    source_labels: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    source_features: npt.ArrayLike | None = None,
    target_features: npt.ArrayLike | None = None,
    target_prior: npt.ArrayLike | None = None,
    seed: int = 0,
) -> ScoreInputs:
    """Check the arrays of one candidate.

    Args:
        target_posterior: (M, K), rows summing to 1.
        source_posterior: (N, K), by the same map.
        source_labels: (N,) classes.
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients; one per image if ``None``.
        source_features: (N, D); given together with ``target_features``.
        target_features: (M, D).
        target_prior: (K,) trusted estimate of the target's prior.
        seed: of what a score draws.

    Raises:
        DataError: arrays of wrong shape or not finite, or features of one domain alone.
    """
    target = as_posterior(target_posterior, "target posterior")
    source = as_posterior(source_posterior, "source posterior")
    if source.shape[1] != target.shape[1]:
        raise DataError(
            f"the source posterior has {source.shape[1]} classes, the target's {target.shape[1]}."
        )
    if (source_features is None) != (target_features is None):
        raise DataError("features are needed of both domains or of neither.")
    x_s: FloatArray | None = None
    x_t: FloatArray | None = None
    if source_features is not None and target_features is not None:
        x_s, x_t = matrices(source_features, target_features)
        if (len(x_s), len(x_t)) != (len(source), len(target)):
            raise DataError("features and posteriors are of different numbers of images.")
    k = target.shape[1]
    return ScoreInputs(
        target_posterior=target,
        source_posterior=source,
        source_labels=as_labels(source_labels, len(source), k),
        source_groups=as_groups(source_groups, len(source)),
        target_groups=as_groups(target_groups, len(target)),
        source_features=x_s,
        target_features=x_t,
        target_prior=None if target_prior is None else as_prior(target_prior, k, "target prior"),
        seed=seed,
    )
