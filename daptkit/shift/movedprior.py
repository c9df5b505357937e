"""Did the class frequencies change, or did all predictions move together?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular

from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_labels
from daptkit.shift.bootstrap import group_counts
from daptkit.shift.divergence import matrices
from daptkit.shift.embedding import differs
from daptkit.shift.twosample import ShiftTest, untested

MAX_IMAGES = 1500
RESAMPLES = 199
PATIENTS_PER_DIRECTION = 5

_STEPS, _STEPS_AGAIN = 60, 10
_SHRINK = 1e-3


def moved_prior_test(
    source_logits: npt.ArrayLike,
    source_labels: npt.ArrayLike,
    target_logits: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ShiftTest:
    """Test whether the class frequencies changed, given that all logits may have moved together.

    A change of appearance that moves every image's logits the same way changes the mean prediction,
    as a change of frequencies does, but not the shape of their distribution. So a mixture
    sum_k q_k N(m_k + d, S) is fitted to the logits of each domain by expectation maximisation, q, d
    and S free and m_k the means of the source's classes, and its q are compared. The source's own
    are estimated without labels too: where logits are not Gaussian, both are wrong by the same. The
    statistic is t' V^-1 t, t = q_t - q_s, V and the null from a bootstrap of both sites' patients.
    Of larger sites 1500 images, of whole patients, are used.

    Args:
        source_logits: (N, K) of held-out source images.
        source_labels: (N,) class indices.
        target_logits: (M, K).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        resamples: B.
        seed: of the bootstrap.

    Reference: McLachlan, Peel 2000, "Finite Mixture Models", chapter 3; Zhang et al. 2013,
    "Domain adaptation under target and conditional shift", ICML (prior and location move at once).

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    z_s, z_t = matrices(source_logits, target_logits)
    y = as_labels(source_labels, len(z_s), z_s.shape[1])
    rng = np.random.default_rng(seed)
    g_s, g_t = as_groups(source_groups, len(z_s)), as_groups(target_groups, len(z_t))
    rows_s, rows_t = (some_patients(g, MAX_IMAGES, rng) for g in (g_s, g_t))
    z_s, y, z_t = z_s[rows_s], y[rows_s], z_t[rows_t]
    g_s, g_t = as_groups(g_s[rows_s], len(rows_s)), as_groups(g_t[rows_t], len(rows_t))
    none = untested(g_s, g_t)
    present = np.unique(y)
    if none.note:
        return none
    # A softmax ignores what is added to all logits of an image.
    x_s, x_t = (z[:, :-1] - z[:, -1:] for z in (z_s, z_t))
    if len(present) < 2 or not differs(np.vstack([x_s, x_t])):
        return replace(none, note="the classifier or its labels know one class only")
    y = np.searchsorted(present, y).astype(np.int64)
    means = np.stack([x_s[y == k].mean(axis=0) for k in range(len(present))])
    start = _Mixture.of_labels(x_s, y, means)
    whole_s = start.fitted(x_s, np.ones(len(x_s)), means, _STEPS)
    moved = replace(start, offset=x_t.mean(axis=0) - x_s.mean(axis=0))
    ones = np.ones(len(x_t))
    whole_t = max(
        (m.fitted(x_t, ones, means, _STEPS) for m in (start, moved)),
        key=lambda m: m.likelihood(x_t, ones, means),
    )
    drawn = []
    for _ in range(resamples):
        again_s = whole_s.fitted(x_s, group_counts(g_s, rng), means, _STEPS_AGAIN)
        again_t = whole_t.fitted(x_t, group_counts(g_t, rng), means, _STEPS_AGAIN)
        drawn.append(again_t.prior - again_s.prior)
    gap = whole_t.prior - whole_s.prior
    most = max(1, min(none.source_patients, none.target_patients) // PATIENTS_PER_DIRECTION)
    value, p = _wald(gap, np.stack(drawn) - gap, most)
    return replace(none, statistic=value, p=p, resamples=resamples)


@dataclass(frozen=True)
class _Mixture:
    """Gaussians of means m_k + offset (R,) and one covariance (R, R), mixed by prior (K,)."""

    prior: FloatArray
    offset: FloatArray
    covariance: FloatArray

    @classmethod
    def of_labels(cls, x: FloatArray, y: IntArray, means: FloatArray) -> _Mixture:
        centred = x - means[y]
        counts = np.bincount(y, minlength=len(means))
        covariance = _steady(centred.T @ centred / len(x))
        return cls(counts / len(y), np.zeros(x.shape[1]), covariance)

    def fitted(self, x: FloatArray, w: FloatArray, means: FloatArray, steps: int) -> _Mixture:
        """Return the mixture after some steps of expectation maximisation on rows of weight w."""
        x, w = x[w > 0], w[w > 0] / w.sum()
        found, mean = self, w @ x
        for _ in range(steps):
            joint = found._log_joint(x, means)
            shares = np.exp(joint - joint.max(axis=1, keepdims=True))
            shares *= (w / shares.sum(axis=1))[:, None]
            each = shares.sum(axis=0)
            prior = np.maximum(each, 1e-6)
            offset = mean - each @ means
            # sum_ik r_ik (x_i - m_k - d)(x_i - m_k - d)', without a row for each pair.
            centred = x - offset
            mixed = centred.T @ (shares @ means)
            covariance = (centred * w[:, None]).T @ centred - mixed - mixed.T
            covariance += (means * each[:, None]).T @ means
            found = _Mixture(prior / prior.sum(), offset, _steady(covariance))
        return found

    def likelihood(self, x: FloatArray, w: FloatArray, means: FloatArray) -> float:
        """Return the weighted mean log likelihood, but for a constant."""
        joint = self._log_joint(x, means)
        top = joint.max(axis=1)
        each = top + np.log(np.exp(joint - top[:, None]).sum(axis=1))
        root = cholesky(self.covariance, lower=True)
        return float(w @ each / w.sum()) - float(np.log(np.diag(root)).sum())

    def _log_joint(self, x: FloatArray, means: FloatArray) -> FloatArray:
        """Return log q_k - |x - m_k - d|^2 / 2 in the metric of the covariance, (N, K)."""
        # Rows are finite: looking again at each of thousands of steps takes a tenth of the time.
        root = cholesky(self.covariance, lower=True, check_finite=False)
        a = solve_triangular(root, (x - self.offset).T, lower=True, check_finite=False).T
        b = solve_triangular(root, means.T, lower=True, check_finite=False).T
        cross = a @ b.T - 0.5 * (b * b).sum(axis=1)
        own = 0.5 * (a * a).sum(axis=1)
        return np.asarray(np.log(self.prior) + cross - own[:, None])


def _steady(covariance: FloatArray) -> FloatArray:
    """Return the covariance with a little of its mean variance on the diagonal."""
    size = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    return np.asarray(covariance + _SHRINK * size * np.eye(len(covariance)))


def _wald(gap: FloatArray, noise: FloatArray, most: int) -> tuple[float, float]:
    """Return (x' V^-1 x, p) of gap (K,) under centred noise (B, K), in at most ``most`` directions.

    The directions are the noisiest: V = sum v v' of the draws, and both sum to 0.
    """
    values, vectors = np.linalg.eigh(noise.T @ noise / len(noise))
    kept = np.flatnonzero(values > 1e-9 * values[-1])[-most:]
    if not len(kept) or values[-1] <= 0:
        return 0.0, 1.0
    x = np.vstack([gap, noise]) @ (vectors[:, kept] / np.sqrt(values[kept]))
    far = (x * x).sum(axis=1)
    return float(far[0]), (int((far[1:] >= far[0]).sum()) + 1) / (len(noise) + 1)


def drawn_patients(groups: IntArray, most: int, seed: int) -> IntArray:
    """Return the rows of whole patients drawn by ``seed``, at most ``most``; all if they are fewer.

    Args:
        groups: (N,) any numbers of patients.
        most: rows.
        seed: of the draw.
    """
    numbered = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    return some_patients(numbered, most, np.random.default_rng([seed, 2]))


def some_patients(groups: IntArray, most: int, rng: np.random.Generator) -> IntArray:
    """Return the rows of randomly drawn whole patients, at most ``most`` of them.

    The first patient drawn is taken whatever its number of images.
    """
    if len(groups) <= most:
        return np.arange(len(groups), dtype=np.int64)
    sizes = np.bincount(groups)
    order = rng.permutation(len(sizes))
    taken = np.cumsum(sizes[order]) <= most
    taken[0] = True
    return np.flatnonzero(np.isin(groups, order[taken])).astype(np.int64)
