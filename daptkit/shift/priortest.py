"""Did the class frequencies change? A permutation test of the classifier's mean posterior."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from daptkit.shift.arrays import FloatArray, as_groups, as_matrix
from daptkit.shift.embedding import differs, group_sums
from daptkit.shift.twosample import PERMUTATIONS, ShiftTest, blocks, untested

MAX_DIRECTIONS = 15
PATIENTS_PER_DIRECTION = 5


def prior_test(
    source_logits: npt.ArrayLike,
    target_logits: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> ShiftTest:
    """Test whether the target's class frequencies are those of the held-out source images.

    With A[i, j] = P_s(prediction i | class j), mu_s = A p and, where P_s(x|y) = P_t(x|y),
    mu_t = A q: for a confusion matrix of full rank q = p just where mu_t = mu_s. The statistic is
    d' (V_s + V_t)^-1 d, d = mu_t - mu_s and V the covariance of each mean between patients,
    V = sum_g (F_g - n_g mu)(F_g - n_g mu)' / n^2, F_g the sum of a patient's n_g posteriors. Its
    null is drawn by permutation of whole patients: exact where the domains do not differ at all
    and, as the statistic is studentised, valid for many patients where the posteriors differ in
    spread or patients in number of images, but not in the mean. A shift of appearance that makes
    the classifier prefer a class looks the same.

    The posterior is the uncalibrated softmax, which knows no labels. Of many classes the 15
    directions in which it varies most are tested, and of few patients one for every 5.

    Args:
        source_logits: (N, K) of held-out source images.
        target_logits: (M, K).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        permutations: B.
        seed: of the permutations.

    Reference: Lipton, Wang, Smola 2018, arXiv:1802.03916; Chung, Romano 2013,
    doi:10.1214/13-AOS1090 (studentised permutation tests).

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    f_s = np.asarray(softmax(as_matrix(source_logits, "source logits"), axis=1))
    f_t = np.asarray(softmax(as_matrix(target_logits, "target logits"), axis=1))
    g_s, g_t = as_groups(source_groups, len(f_s)), as_groups(target_groups, len(f_t))
    none = untested(g_s, g_t)
    pooled = np.vstack([f_s, f_t])
    if none.note:
        return none
    if not differs(pooled):
        return replace(none, note="the classifier gives every image the same probabilities")
    n_s, n_t = none.source_patients, none.target_patients
    groups = np.concatenate([g_s, g_t + n_s])
    most = min(MAX_DIRECTIONS, max(1, min(n_s, n_t) // PATIENTS_PER_DIRECTION))
    scores = _directions(pooled, most)
    sizes = np.bincount(groups).astype(np.float64)
    sums = group_sums(scores, groups, len(sizes))
    products = (sums[:, :, None] * sums[:, None, :]).reshape(len(sums), -1)
    # Everything that the statistic of a division needs is a sum over its patients.
    table = np.hstack([sizes[:, None], sizes[:, None] ** 2, sums, sizes[:, None] * sums, products])
    first = np.arange(len(sizes)) < n_s
    whole = table.sum(axis=0)

    def statistic(members: FloatArray) -> FloatArray:
        inside = members @ table
        mean_s, spread_s = _mean_and_spread(inside, scores.shape[1])
        mean_t, spread_t = _mean_and_spread(whole - inside, scores.shape[1])
        gap = mean_t - mean_s
        spread = spread_s + spread_t
        ridge = 1e-9 * np.trace(spread, axis1=1, axis2=2) + 1e-300
        spread += ridge[:, None, None] * np.eye(gap.shape[1])
        solved = np.linalg.solve(spread, gap[:, :, None])[:, :, 0]
        return np.asarray((gap * solved).sum(axis=1))

    rng = np.random.default_rng(seed)
    observed = float(statistic(first[None].astype(np.float64))[0])
    beyond = 0
    for size in blocks(permutations, len(sizes)):
        drawn = rng.permuted(np.tile(first, (size, 1)), axis=1).astype(np.float64)
        beyond += int((statistic(drawn) >= observed * (1.0 - 1e-6)).sum())
    p = (beyond + 1) / (permutations + 1)
    return replace(none, statistic=observed, p=p, resamples=permutations)


def _directions(posterior: FloatArray, most: int) -> FloatArray:
    """Return the posteriors' principal components, at most ``most``, scaled to variance 1, (N, r).

    K - 1 of them carry all that posteriors do, and the statistic does not depend on their basis.
    """
    centred = posterior - posterior.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int((values > 1e-10 * values[0]).sum())
    kept = min(kept, most)
    return np.asarray(centred @ (vectors[:, :kept] / np.sqrt(values[:kept])))


def _mean_and_spread(table: FloatArray, r: int) -> tuple[FloatArray, FloatArray]:
    """Return mean (B, r) and its covariance (B, r, r) from sums over patients (B, 2 + 2r + r^2)."""
    n, squares = table[:, 0, None], table[:, 1, None, None]
    mean = table[:, 2 : 2 + r] / n
    mixed = table[:, 2 + r : 2 + 2 * r]
    cross = mean[:, :, None] * mixed[:, None, :]
    products = table[:, 2 + 2 * r :].reshape(-1, r, r)
    spread = products - cross - cross.transpose(0, 2, 1)
    spread += squares * mean[:, :, None] * mean[:, None, :]
    return mean, spread / n[:, :, None] ** 2
