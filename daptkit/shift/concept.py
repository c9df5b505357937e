"""Does a label mean the same at the target? A test on a few labelled target images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from daptkit.errors import DataError
from daptkit.shift.arrays import (
    FloatArray,
    IntArray,
    as_groups,
    as_labels,
    as_prior,
    floored,
    one_hot,
)
from daptkit.shift.bootstrap import group_counts
from daptkit.shift.calibration import Calibration, fit_calibration, search
from daptkit.shift.divergence import NAN, matrices

MIN_LABELLED_PATIENTS = 15
PATIENTS_PER_DIRECTION = 5
BOOTSTRAPS = 300
LOG_FLOOR = -7.0
"""Log posterior (P = 0.001) below which the slope's score does not look further."""

Interval = tuple[float, float, float]
"""Estimate, lower and upper end of its 95% interval."""


@dataclass(frozen=True, kw_only=True)
class ConceptTest:
    """How labels of the target agree with what the source says of them.

    Args:
        p: min(1, 2 min(p_calibration, p_disagreement)); NaN where nothing was tested.
        p_calibration: of "offsets are 0 and the slope is 1".
        p_disagreement: of "the error is that of the re-weighted source".
        offsets: for each class, above 0 where it is more frequent than predicted (log odds).
        slope: below 1 where predictions are too sure of themselves.
        error: share of labelled target images predicted wrongly.
        expected_error: the same share at the source, its classes re-weighted by q / p.
        disagreement: their difference.
        images: labelled target images.
        patients: patients they are of.
        note: why nothing was tested; empty otherwise.
    """

    p: float
    p_calibration: float
    p_disagreement: float
    offsets: tuple[Interval, ...]
    slope: Interval
    error: float
    expected_error: float
    disagreement: Interval
    images: int
    patients: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, NaN as ``None``."""

        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return [plain(v) for v in value]
            return None if isinstance(value, float) and not np.isfinite(value) else value

        return {name: plain(value) for name, value in vars(self).items()}


def concept_test(
    source_logits: npt.ArrayLike,
    source_labels: npt.ArrayLike,
    target_logits: npt.ArrayLike,
    target_labels: npt.ArrayLike,
    *,
    target_prior: npt.ArrayLike | None = None,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    bootstraps: int = BOOTSTRAPS,
    seed: int = 0,
) -> ConceptTest:
    """Test P_t(y|x) = P_s(y|x), but for a shift of the prior, on labelled target images.

    The source's calibrated posterior under the target prior, P_k = softmax(log P_s + log q -
    log pi)_k, is recalibrated on the labelled images: softmax(log P + o) (calibration in the large)
    and softmax(b log P + o) (slope b), sum o = 0; for two classes these are logistic recalibration.
    They are tested by their scores at o = 0 and b = 1,

        mean (1[y = k] - P_k) for each class,  mean sum_k (1[y = k] - P_k) max(log P_k, -7),

    with Hotelling's T^2 and the covariance of a bootstrap of whole patients of both sites that fits
    the calibration again. The disagreement is the target's error minus that of the source with
    class weights q / p, tested by t with the same bootstrap. Classes beyond one for every 5
    patients are pooled for the test, the least expected ones first.

    A classifier that fails on images of another appearance disagrees too: this test tells whether
    the source's answers hold at the target, not why.

    Args:
        source_logits: (N, K) of held-out source images.
        source_labels: (N,) class indices.
        target_logits: (M, K) of the labelled target images, a random sample of the target.
        target_labels: (M,) class indices.
        target_prior: q, (K,), estimated without these labels; the source's where ``None``.
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        bootstraps: replicates.
        seed: of the bootstrap.

    Reference: Cox 1958, doi:10.1093/biomet/45.3-4.562; Van Calster et al. 2016,
    doi:10.1016/j.jclinepi.2015.12.005 (recalibration); Van Hoorde et al. 2014,
    doi:10.1002/sim.6114 (several classes).

    Raises:
        DataError: arrays of wrong shape or not finite, or fewer than 2 bootstrap replicates.
    """
    z_s, z_t = matrices(source_logits, target_logits)
    k = z_s.shape[1]
    if bootstraps < 2:
        raise DataError("the test needs at least 2 bootstrap replicates.")
    site = _Sites(
        z_s,
        as_labels(source_labels, len(z_s), k),
        z_t,
        as_labels(target_labels, len(z_t), k),
        None if target_prior is None else as_prior(target_prior, k, "target prior"),
    )
    g_s, g_t = as_groups(source_groups, len(z_s)), as_groups(target_groups, len(z_t))
    patients = int(g_t.max()) + 1
    ones_s, ones_t = np.ones(len(z_s)), np.ones(len(z_t))
    start = fit_calibration(z_s, site.y_s)
    most = max(1, patients // PATIENTS_PER_DIRECTION - 1)
    found = site.fit(ones_s, ones_t, start)
    tested = _tested_classes(found.expected, most)
    rng = np.random.default_rng(seed)
    drawn = [
        site.fit(group_counts(g_s, rng), group_counts(g_t, rng), start) for _ in range(bootstraps)
    ]
    p_calibration, p_disagreement, note = NAN, NAN, ""
    if patients < MIN_LABELLED_PATIENTS:
        note = f"{patients} labelled patients are fewer than {MIN_LABELLED_PATIENTS}"
    else:
        scores = np.stack([np.append(d.scores[:-1][tested], d.scores[-1]) for d in drawn])
        score = np.append(found.scores[:-1][tested], found.scores[-1])
        p_calibration = _hotelling_p(score, scores, patients)
        spread = float(np.std([d.disagreement for d in drawn], ddof=1))
        if spread > 0:
            p_disagreement = 2 * float(
                t_distribution.sf(abs(found.disagreement) / spread, patients - 1)
            )
    known = [p for p in (p_calibration, p_disagreement) if np.isfinite(p)]
    offsets = np.stack([d.offsets for d in drawn])
    return ConceptTest(
        p=min(1.0, len(known) * min(known)) if known else NAN,
        p_calibration=p_calibration,
        p_disagreement=p_disagreement,
        offsets=tuple(
            _interval(float(o), column) for o, column in zip(found.offsets, offsets.T, strict=True)
        ),
        slope=_interval(found.slope, np.array([d.slope for d in drawn])),
        error=found.error,
        expected_error=found.error - found.disagreement,
        disagreement=_interval(found.disagreement, np.array([d.disagreement for d in drawn])),
        images=len(z_t),
        patients=patients,
        note=note,
    )


@dataclass(frozen=True)
class _Fit:
    """What one weighting of the images gives."""

    scores: FloatArray  # (K + 1,) of each class, and of the slope
    expected: FloatArray  # (K,) mean P
    offsets: FloatArray  # (K,)
    slope: float
    error: float
    disagreement: float


@dataclass(frozen=True)
class _Sites:
    """Logits and labels of held-out source images and of labelled target images."""

    z_s: FloatArray
    y_s: IntArray
    z_t: FloatArray
    y_t: IntArray
    target_prior: FloatArray | None

    def fit(self, s: FloatArray, t: FloatArray, start: Calibration) -> _Fit:
        """Return the scores of weights s (N,) and t (M,) of the images."""
        k = self.z_s.shape[1]
        calibration = fit_calibration(self.z_s, self.y_s, s, start=start)
        log_s = calibration.log_posterior(self.z_s)
        pi = floored(np.asarray(s @ np.exp(log_s) / s.sum()), float(s.sum()))
        counts = np.bincount(self.y_s, weights=s, minlength=k)
        p = counts / counts.sum()
        q = p if self.target_prior is None else self.target_prior
        # A prior of 0 would forbid a class that a labelled image may well have.
        moved = 0.0 if self.target_prior is None else np.log(floored(q, len(t))) - np.log(pi)
        log_s = log_softmax(log_s + moved, axis=1)
        log_t = log_softmax(calibration.log_posterior(self.z_t) + moved, axis=1)
        share = t / t.sum()
        gap = one_hot(self.y_t, k) - np.exp(log_t)
        slope_score = share @ (gap * np.maximum(log_t, LOG_FLOOR)).sum(axis=1)
        offsets = search(log_t, self.y_t, t, True, with_scale=False)[1]
        slope = search(log_t, self.y_t, t, True)[0]
        error = float(share @ (log_t.argmax(axis=1) != self.y_t))
        w = s * np.where(counts > 0, q / np.maximum(p, 1e-12), 0.0)[self.y_s]
        expected = float(w @ (log_s.argmax(axis=1) != self.y_s) / w.sum()) if w.sum() > 0 else NAN
        return _Fit(
            scores=np.append(share @ gap, slope_score),
            expected=np.asarray(share @ np.exp(log_t)),
            offsets=np.asarray(offsets - offsets.mean()),
            slope=slope,
            error=error,
            disagreement=error - expected,
        )


def _tested_classes(expected: FloatArray, most: int) -> IntArray:
    """Return the classes whose scores are tested: the most expected, at most K - 1 of them.

    The scores of all classes sum to 0, so the one left out is known from the others.
    """
    order = np.argsort(-expected, kind="stable")
    return np.sort(order[: min(most, len(expected) - 1)]).astype(np.int64)


def _hotelling_p(score: FloatArray, draws: FloatArray, patients: int) -> float:
    """Return the p value of mean score 0 by Hotelling's T^2 with the covariance of draws (B, r)."""
    covariance = np.atleast_2d(np.cov(draws, rowvar=False))
    scale = np.sqrt(np.diag(covariance))
    kept = scale > 0
    r = int(kept.sum())
    if not r or patients <= r:
        return NAN
    # Scaled to correlations, a small ridge is small for every direction.
    correlation = covariance[np.ix_(kept, kept)] / np.outer(scale[kept], scale[kept])
    correlation += 1e-6 * np.eye(r)
    z = score[kept] / scale[kept]
    t2 = float(z @ np.linalg.solve(correlation, z))
    return float(f_distribution.sf(t2 * (patients - r) / (r * (patients - 1)), r, patients - r))


def _interval(value: float, draws: FloatArray) -> Interval:
    if not np.isfinite(value):
        return NAN, NAN, NAN
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return value, min(value, float(low)), max(value, float(high))
