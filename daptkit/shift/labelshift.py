"""The target prior with its interval, its importance weights and whether it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.errors import UsageError, did_you_mean
from daptkit.shift.arrays import (
    FloatArray,
    IntArray,
    as_groups,
    as_labels,
    as_matrix,
    as_prior,
    as_weights,
    floored,
)
from daptkit.shift.bootstrap import Replicates, bootstrap
from daptkit.shift.calibration import Calibration, fit_calibration
from daptkit.shift.confusion import (
    conditional_confusion,
    hard_predictions,
    predicted_marginal,
    smallest_singular_value,
)
from daptkit.shift.estimators import bbse_prior, em_prior, rlls_prior
from daptkit.shift.gap import feature_gap
from daptkit.shift.trust import Evidence, TrustLimits, distrust, representation
from daptkit.shift.weights import importance_weights

METHODS = ("em", "bbse", "bbse-hard", "rlls")


@dataclass(frozen=True, kw_only=True)
class PriorEstimate:
    """A target prior and what is known of its quality.

    Args:
        prior: q, (K,), or ``None`` when it is not trusted.
        estimate: the estimate itself, (K,), trusted or not.
        low: lower end of the 95% bootstrap interval, (K,); NaN without bootstrap.
        high: upper end, (K,).
        weights: class weights q / p of mean 1 under p, (K,); ones when not trusted.
        method: ``"em"``, ``"bbse"``, ``"bbse-hard"`` or ``"rlls"``.
        ess: Kish's effective number of source images under the estimated weights.
        residual: L1 distance between the target's predictions and the closest mixture of the
            source's classes (see :func:`daptkit.shift.trust.representation`).
        feature_gap: distance of the domains' features after re-weighting, in units of that between
            classes (see :func:`daptkit.shift.feature_gap`); NaN where features were not given.
        condition: smallest singular value of the soft confusion matrix, in [0, 1].
        agreement: L1 distance between the estimates of EM and BBSE.
        trusted: whether every check passed.
        reasons: one sentence for each check that failed.
        calibration: fitted on the held-out source images, under the weights in force.
    """

    prior: FloatArray | None
    estimate: FloatArray
    low: FloatArray
    high: FloatArray
    weights: FloatArray
    method: str
    ess: float
    residual: float
    feature_gap: float
    condition: float
    agreement: float
    trusted: bool
    reasons: tuple[str, ...]
    calibration: Calibration

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers and strings, NaN as ``None``."""

        def plain(values: FloatArray) -> list[float | None]:
            return [float(v) if np.isfinite(v) else None for v in values]

        return {
            "method": self.method,
            "trusted": self.trusted,
            "reasons": list(self.reasons),
            "prior": None if self.prior is None else plain(self.prior),
            "estimate": plain(self.estimate),
            "low": plain(self.low),
            "high": plain(self.high),
            "weights": plain(self.weights),
            "ess": self.ess,
            "residual": self.residual,
            "feature_gap": self.feature_gap if np.isfinite(self.feature_gap) else None,
            "condition": self.condition,
            "agreement": self.agreement,
        }


@dataclass(frozen=True)
class _Sample:
    """Held-out source and target logits, and the rows' weights."""

    source: FloatArray  # (N, K)
    labels: IntArray  # (N,)
    in_force: FloatArray  # (N,) class weights the model was trained under
    target: FloatArray  # (M, K)
    pseudo_count: float


def estimate_prior(
    source_logits: npt.ArrayLike,
    source_labels: npt.ArrayLike,
    target_logits: npt.ArrayLike,
    *,
    source_prior: npt.ArrayLike | None = None,
    source_weights: npt.ArrayLike | None = None,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    source_features: npt.ArrayLike | None = None,
    target_features: npt.ArrayLike | None = None,
    n_source: int | None = None,
    method: str = "em",
    bootstraps: int = 200,
    pseudo_count: float = 0.0,
    shrink: float = 0.0,
    max_weight: float = 10.0,
    limits: TrustLimits | None = None,
    seed: int = 0,
) -> PriorEstimate:
    """Estimate the target prior under label shift, P_s(x|y) = P_t(x|y).

    Logits are calibrated on the held-out source images under the weights in force. EM then
    maximises the target likelihood with pi the weighted mean calibrated posterior; BBSE and RLLS
    invert the confusion matrix, which conditions on y and so does not depend on the weights. The
    weights are q / p with p unweighted.

    Args:
        source_logits: (N, K) of held-out source images.
        source_labels: (N,) class indices.
        target_logits: (M, K).
        source_prior: p, (K,), class frequencies of the source training images; those of
            ``source_labels`` if ``None``.
        source_weights: (N,) class weights the model was trained under; ones if ``None``.
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients; one per image if ``None``.
        source_features: (N, D) that the logits are made of; with ``target_features`` they are
            checked for shift beyond the prior.
        target_features: (M, D).
        n_source: source training images, for the effective sample size; N if ``None``.
        method: one of :data:`METHODS`.
        bootstraps: replicates of the interval, both domains resampled; 0 for none.
        pseudo_count: Laplace shrinkage of the confusion matrix.
        shrink: shrinkage of the weights towards 1, in [0, 1].
        max_weight: largest class weight, at least 1.
        limits: when not to trust the estimate.
        seed: of the bootstrap.

    Reference: arXiv:1802.03916 (BBSE), arXiv:1903.09734 (RLLS), arXiv:1901.06852 (EM).

    Raises:
        UsageError: unknown method.
        DataError: arrays of wrong shape or not finite.
    """
    if method not in METHODS:
        hint = did_you_mean(method, METHODS)
        raise UsageError(f"the estimator is one of {', '.join(METHODS)}, not {method!r}.{hint}")
    z = as_matrix(source_logits, "source logits")
    n, k = z.shape
    sample = _Sample(
        z,
        as_labels(source_labels, n, k),
        as_weights(source_weights, n),
        as_matrix(target_logits, "target logits"),
        pseudo_count,
    )
    m = len(sample.target)
    s_groups, t_groups = as_groups(source_groups, n), as_groups(target_groups, m)
    p = as_prior(
        np.bincount(sample.labels, minlength=k) if source_prior is None else source_prior, k
    )
    calibration = _calibrate(sample, np.ones(n))
    other = "bbse" if method == "em" else "em"
    estimated = floored(_estimate(sample, np.ones(n), np.ones(m), method, calibration), m)
    compared = _estimate(sample, np.ones(n), np.ones(m), other, calibration)

    def replicate(s: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        again = _calibrate(sample, s, calibration)
        return _estimate(sample, s, t, method, again), _estimate(sample, s, t, other, again)

    drawn = (
        bootstrap(replicate, s_groups, t_groups, replicates=bootstraps, seed=seed)
        if bootstraps
        else None
    )
    weights = importance_weights(estimated, p, shrink=shrink, max_weight=max_weight)
    gap = float("nan")
    if source_features is not None and target_features is not None:
        gap = feature_gap(
            source_features,
            sample.labels,
            target_features,
            estimated,
            source_groups=s_groups,
            target_groups=t_groups,
            seed=seed,
        )
    evidence = _evidence(sample, calibration, s_groups, t_groups, estimated, compared, drawn, gap)
    ess = (n if n_source is None else n_source) / float(p @ (weights * weights))
    reasons = distrust(evidence, ess, limits or TrustLimits())
    low, high = drawn.interval() if drawn else (np.full(k, np.nan), np.full(k, np.nan))
    return PriorEstimate(
        prior=None if reasons else estimated,
        estimate=estimated,
        low=np.minimum(low, estimated),
        high=np.maximum(high, estimated),
        weights=np.ones(k) if reasons else weights,
        method=method,
        ess=ess,
        residual=evidence.residual,
        feature_gap=gap,
        condition=evidence.condition,
        agreement=evidence.agreement,
        trusted=not reasons,
        reasons=reasons,
        calibration=calibration,
    )


def _calibrate(
    sample: _Sample, counts: FloatArray, start: Calibration | None = None
) -> Calibration:
    return fit_calibration(sample.source, sample.labels, sample.in_force * counts, start=start)


def _estimate(
    sample: _Sample, s: FloatArray, t: FloatArray, method: str, calibration: Calibration
) -> FloatArray:
    """Return the prior by ``method``; ``s`` and ``t`` count the rows of source and target."""
    log_source = calibration.log_posterior(sample.source)
    log_target = calibration.log_posterior(sample.target)
    if method == "em":
        pi = predicted_marginal(np.exp(log_source), s * sample.in_force)
        return em_prior(log_target, pi, t)
    if method == "bbse-hard":
        source, target = hard_predictions(sample.source), hard_predictions(sample.target)
    else:
        source, target = np.exp(log_source), np.exp(log_target)
    matrix = conditional_confusion(source, sample.labels, s, pseudo_count=sample.pseudo_count)
    marginal = predicted_marginal(target, t)
    if method == "rlls":
        frequencies = np.bincount(sample.labels, weights=s, minlength=matrix.shape[1])
        return rlls_prior(matrix, marginal, frequencies, len(sample.labels))
    return bbse_prior(matrix, marginal)


def _evidence(
    sample: _Sample,
    calibration: Calibration,
    source_groups: IntArray,
    target_groups: IntArray,
    estimated: FloatArray,
    compared: FloatArray,
    drawn: Replicates | None,
    gap: float,
) -> Evidence:
    """Collect what :func:`daptkit.shift.trust.distrust` judges."""
    source = np.exp(calibration.log_posterior(sample.source))
    target = np.exp(calibration.log_posterior(sample.target))
    k = source.shape[1]
    hard = conditional_confusion(hard_predictions(sample.source), sample.labels)
    residual, noise = representation(source, sample.labels, source_groups, target, target_groups)
    return Evidence(
        class_counts=np.bincount(sample.labels, minlength=k).astype(np.int64),
        condition=smallest_singular_value(conditional_confusion(source, sample.labels)),
        balanced_accuracy=float(np.diag(hard).mean()),
        residual=residual,
        residual_noise=noise,
        feature_gap=gap,
        agreement=float(np.abs(estimated - compared).sum()),
        spread=None
        if drawn is None
        else float(np.abs(drawn.priors - estimated).sum(axis=1).mean()),
        n_target=len(target),
    )
