"""Does a label mean the same at the target? A test on a few labelled target images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

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
BOOTSTRAPS = 200
DRAWS = 999
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
    draws: int = DRAWS,
    seed: int = 0,
) -> ConceptTest:
    """Test P_t(y|x) = P_s(y|x), but for a shift of the prior, on labelled target images.

    The source's calibrated posterior under the target prior, P_k = softmax(log P_s + log q -
    log pi)_k, is recalibrated on the labelled images: softmax(log P + o) (calibration in the large)
    and softmax(b log P + o) (slope b), sum o = 0; for two classes these are logistic recalibration.
    They are tested by their scores at o = 0 and b = 1,

        mean (1[y = k] - P_k) for each class,  mean sum_k (1[y = k] - P_k) max(log P_k, -7),

    joined as u' V^-1 u. The disagreement is the target's error minus that of the source with class
    weights q / p. Both have the null of labels drawn from P, all images of a patient by one
    uniform number, which is the strongest dependence there can be, plus the noise of calibration
    and source error, from a bootstrap of the source's patients. Intervals are of a bootstrap of
    both sites' patients. Classes beyond one for every 5 patients are pooled for the test, the least
    expected ones first.

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
        bootstraps: replicates of the intervals and of the source's noise.
        draws: B of the p values.
        seed: of everything drawn.

    Reference: Cox 1958, doi:10.1093/biomet/45.3-4.562; Van Calster et al. 2016,
    doi:10.1016/j.jclinepi.2015.12.005 (recalibration); Van Hoorde et al. 2014,
    doi:10.1002/sim.6114 (several classes).

    Raises:
        DataError: arrays of wrong shape or not finite, or too few replicates.
    """
    z_s, z_t = matrices(source_logits, target_logits)
    k = z_s.shape[1]
    if bootstraps < 2 or draws < 1:
        raise DataError("the test needs at least 2 bootstrap replicates and 1 draw.")
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
    found = site.score(ones_s, ones_t, start)
    tested = _tested_classes(found.expected, most)
    rng = np.random.default_rng(seed)
    p_calibration, p_disagreement, note = NAN, NAN, ""
    if patients < MIN_LABELLED_PATIENTS:
        note = f"{patients} labelled patients are fewer than {MIN_LABELLED_PATIENTS}"
    else:
        noise = [
            site.score(group_counts(g_s, rng), ones_t, start).noise(found)
            for _ in range(bootstraps)
        ]
        null = _null_scores(found.log_t, g_t, draws, rng)
        null += np.stack(noise)[rng.integers(0, bootstraps, draws)]
        columns = np.append(tested, k)
        p_calibration = _joint_p(found.scores[columns], null[:, columns])
        p_disagreement = _joint_p(found.scores[-1:], null[:, -1:])
    drawn = [
        site.fit(site.score(group_counts(g_s, rng), counts, start), counts)
        for counts in (group_counts(g_t, rng) for _ in range(bootstraps))
    ]
    fitted = site.fit(found, ones_t)
    known = [p for p in (p_calibration, p_disagreement) if np.isfinite(p)]
    disagreements = np.array([d.disagreement for d in drawn])
    return ConceptTest(
        p=min(1.0, len(known) * min(known)) if known else NAN,
        p_calibration=p_calibration,
        p_disagreement=p_disagreement,
        offsets=tuple(
            _interval(float(o), np.array([d.offsets[c] for d in drawn]))
            for c, o in enumerate(fitted.offsets)
        ),
        slope=_interval(fitted.slope, np.array([d.slope for d in drawn])),
        error=found.error,
        expected_error=found.error - fitted.disagreement,
        disagreement=_interval(fitted.disagreement, disagreements),
        images=len(z_t),
        patients=patients,
        note=note,
    )


@dataclass(frozen=True)
class _Score:
    """What one weighting of the images says without a fit on the target."""

    log_t: FloatArray  # (M, K) log P of the labelled images
    scores: FloatArray  # (K + 2,) of each class, of the slope, and the disagreement
    expected: FloatArray  # (K,) mean P
    error: float

    def noise(self, whole: _Score) -> FloatArray:
        """Return by how much the scores differ from those of the whole source."""
        return self.scores - whole.scores


@dataclass(frozen=True)
class _Fit:
    offsets: FloatArray  # (K,)
    slope: float
    disagreement: float


@dataclass(frozen=True)
class _Sites:
    """Logits and labels of held-out source images and of labelled target images."""

    z_s: FloatArray
    y_s: IntArray
    z_t: FloatArray
    y_t: IntArray
    target_prior: FloatArray | None

    def score(self, s: FloatArray, t: FloatArray, start: Calibration) -> _Score:
        """Return the scores under weights s (N,) and t (M,) of the images."""
        k = self.z_s.shape[1]
        calibration = fit_calibration(self.z_s, self.y_s, s, start=start)
        log_s = calibration.log_posterior(self.z_s)
        log_t = calibration.log_posterior(self.z_t)
        counts = np.bincount(self.y_s, weights=s, minlength=k)
        p = counts / counts.sum()
        q = p
        if self.target_prior is not None:
            # A prior of 0 would forbid a class that a labelled image may well have.
            q = floored(self.target_prior, len(t))
            pi = floored(np.asarray(s @ np.exp(log_s) / s.sum()), float(s.sum()))
            log_s = log_softmax(log_s + np.log(q) - np.log(pi), axis=1)
            log_t = log_softmax(log_t + np.log(q) - np.log(pi), axis=1)
        share = t / t.sum()
        terms = _terms(log_t, one_hot(self.y_t, k))
        error = float(share @ terms[:, -1])
        w = s * np.where(counts > 0, q / np.maximum(p, 1e-12), 0.0)[self.y_s]
        expected = float(w @ (log_s.argmax(axis=1) != self.y_s) / w.sum())
        scores = share @ terms
        scores[-1] -= expected
        return _Score(log_t, scores, np.asarray(share @ np.exp(log_t)), error)

    def fit(self, score: _Score, t: FloatArray) -> _Fit:
        """Recalibrate on the labelled images, with weights t (M,)."""
        offsets = search(score.log_t, self.y_t, t, True, with_scale=False)[1]
        slope = search(score.log_t, self.y_t, t, True)[0]
        return _Fit(np.asarray(offsets - offsets.mean()), slope, float(score.scores[-1]))


def _terms(log_p: FloatArray, truth: FloatArray) -> FloatArray:
    """Return each image's score of the classes and the slope, and whether it is wrong, (M, K + 2).

    Args:
        log_p: (M, K).
        truth: (M, K) indicators of the label.
    """
    gap = truth - np.exp(log_p)
    slope = (gap * np.maximum(log_p, LOG_FLOOR)).sum(axis=1)
    wrong = 1.0 - truth[np.arange(len(truth)), log_p.argmax(axis=1)]
    return np.column_stack([gap, slope, wrong])


def _null_scores(
    log_p: FloatArray, groups: IntArray, draws: int, rng: np.random.Generator
) -> FloatArray:
    """Return centred scores of labels drawn from P, one uniform number a patient, (B, K + 2)."""
    k = log_p.shape[1]
    cumulative = np.cumsum(np.exp(log_p), axis=1)[:, :-1]
    null = np.empty((draws, k + 2))
    for b in range(draws):
        drawn = (rng.random(int(groups.max()) + 1)[groups][:, None] > cumulative).sum(axis=1)
        null[b] = _terms(log_p, one_hot(drawn.astype(np.int64), k)).mean(axis=0)
    expected_error = float((1.0 - np.exp(log_p).max(axis=1)).mean())
    null[:, -1] -= expected_error
    return null


def _tested_classes(expected: FloatArray, most: int) -> IntArray:
    """Return the classes whose scores are tested: the most expected, at most K - 1 of them.

    The scores of all classes sum to 0, so the one left out is known from the others.
    """
    order = np.argsort(-expected, kind="stable")
    return np.sort(order[: min(most, len(expected) - 1)]).astype(np.int64)


def _joint_p(score: FloatArray, null: FloatArray) -> float:
    """Return (b + 1) / (B + 1), b of B null scores (B, r) at least as far out as score (r,).

    Far is x' V^-1 x, V the mean of x x' over the null.
    """
    second = null.T @ null / len(null)
    scale = np.sqrt(np.diag(second))
    kept = scale > 0
    if not kept.any():
        return NAN
    # Scaled to correlations, a small ridge is small for every direction.
    correlation = second[np.ix_(kept, kept)] / np.outer(scale[kept], scale[kept])
    correlation += 1e-6 * np.eye(int(kept.sum()))
    x = np.vstack([score, null])[:, kept] / scale[kept]
    far = (x * np.linalg.solve(correlation, x.T).T).sum(axis=1)
    return (int((far[1:] >= far[0] * (1.0 - 1e-9)).sum()) + 1) / (len(null) + 1)


def _interval(value: float, draws: FloatArray) -> Interval:
    if not np.isfinite(value):
        return NAN, NAN, NAN
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return value, min(value, float(low)), max(value, float(high))
