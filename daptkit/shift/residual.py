"""Does anything remain of the domains' difference after re-weighting the source's classes?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from daptkit.shift.arrays import (
    FloatArray,
    IntArray,
    as_groups,
    as_labels,
    as_matrix,
    one_hot,
)
from daptkit.shift.confusion import smallest_singular_value
from daptkit.shift.divergence import matrices
from daptkit.shift.embedding import RealArray, group_sums, kernel_embedding
from daptkit.shift.twosample import (
    PERMUTATIONS,
    ShiftTest,
    blocks,
    untested,
)

MIN_CONDITION = 0.05
"""Smallest singular value of the confusion matrix below which weights say nothing."""
MIN_PATIENTS = 2
"""Source patients of a class below which its spread between patients is not known."""


def residual_test(
    source: npt.ArrayLike,
    source_logits: npt.ArrayLike,
    source_labels: npt.ArrayLike,
    target: npt.ArrayLike,
    target_logits: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    resamples: int = PERMUTATIONS,
    seed: int = 0,
) -> ShiftTest:
    """Test whether the source, its classes re-weighted by w = q / p, is the target.

    The statistic is |r|^2, r = sum_k q_k m_k - m_t: the class-weighted MMD^2, m_k and m_t the mean
    of phi over the source's class k and the target, phi of
    :func:`daptkit.shift.embedding.kernel_embedding`. q = A^+ mu_t solves BBSE's equation by least
    squares under sum q = 1, without q >= 0, so that r is linear in what is estimated. A, mu_t, m_k
    and q all come from these images, and all of their noise is in the null: to first order r is
    the mean over patients of

        source, class k:  q_k ((phi - m_k) - R (f - A_k))
        target:           -((phi - m_t) - R (f - mu_t)),    R = M A^+, M = (m_1 ... m_K),

    f the softmax of the logits, and the null of r their sum under random signs, one for each
    patient (wild bootstrap). Patients are divided by 1 - leverage, as in the jackknife, so that
    few of them do not make the null too narrow. Under pure label shift r is about 0 whatever q is.

    Source images of a class with one patient are left out: target images of that class
    then count as residual.

    Args:
        source: (N, D) features of held-out source images.
        source_logits: (N, K).
        source_labels: (N,) class indices.
        target: (M, D).
        target_logits: (M, K).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        resamples: B.
        seed: of signs and landmarks.

    Reference: Lipton, Wang, Smola 2018, arXiv:1802.03916 (weights); Gretton et al. 2012, JMLR 13
    (MMD); Cameron, Gelbach, Miller 2008, doi:10.1162/rest.90.3.414 (wild bootstrap of clusters).

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    x, t = matrices(source, target)
    f_s = np.asarray(softmax(as_matrix(source_logits, "source logits"), axis=1))
    f_t = np.asarray(softmax(as_matrix(target_logits, "target logits"), axis=1))
    y = as_labels(source_labels, len(x), f_s.shape[1])
    g_s, g_t = as_groups(source_groups, len(x)), as_groups(target_groups, len(t))
    kept, left_out = _large_classes(y, g_s, f_s.shape[1])
    none = untested(g_s, g_t)
    if none.note:
        return none
    if not kept.any() or y[kept].max() == y[kept].min():
        return replace(none, note="fewer than two source classes have two patients")
    x, f_s = x[kept], f_s[kept]
    y = np.unique(y[kept], return_inverse=True)[1].astype(np.int64)
    g_s = np.unique(g_s[kept], return_inverse=True)[1].astype(np.int64)
    phi = kernel_embedding(np.vstack([x, t]), seed)
    if phi is None:
        return replace(none, note="the features are all alike")
    terms = _Terms.of(
        phi[: len(x)].astype(np.float64), f_s, y, g_s, phi[len(x) :].astype(np.float64), f_t, g_t
    )
    if terms.condition < MIN_CONDITION:
        text = "the classifier cannot tell the classes apart (smallest singular value of its "
        text += f"confusion matrix {terms.condition:.3f}), so no weights can be worked out"
        return replace(none, note=text)
    p = wild_bootstrap_p(terms.residual, terms.influence, resamples, np.random.default_rng(seed))
    note = ""
    if left_out:
        note = (
            f"{left_out} classes of one source patient were left out; target images of them look "
            "like a residual"
        )
    value = float(terms.residual @ terms.residual)
    return replace(none, statistic=value, p=p, resamples=resamples, note=note)


def wild_bootstrap_p(
    residual: FloatArray, influence: FloatArray, resamples: int, rng: np.random.Generator
) -> float:
    """Return (b + 1) / (B + 1), b of B sums of patients' terms under random signs beyond residual.

    Args:
        residual: (L,).
        influence: (G, L) terms of the patients, whose sum has the residual's covariance.
        resamples: B.
        rng: of the signs.
    """
    light: RealArray = influence.astype(np.float32) if len(influence) > 2000 else influence
    observed = float(residual @ residual)
    beyond = 0
    for size in blocks(resamples, len(influence)):
        signs = rng.integers(0, 2, (size, len(influence)), dtype=np.int8).astype(light.dtype)
        drawn = np.asarray((2 * signs - 1) @ light, dtype=np.float64)
        beyond += int(((drawn * drawn).sum(axis=1) >= observed).sum())
    return (beyond + 1) / (resamples + 1)


@dataclass(frozen=True)
class _Terms:
    """The residual r (L,), each patient's term of it (G, L) and A's smallest singular value."""

    residual: FloatArray
    influence: FloatArray
    condition: float

    @classmethod
    def of(
        cls,
        phi_s: FloatArray,
        f_s: FloatArray,
        y: IntArray,
        g_s: IntArray,
        phi_t: FloatArray,
        f_t: FloatArray,
        g_t: IntArray,
    ) -> _Terms:
        classes = int(y.max()) + 1
        n_k = np.bincount(y, minlength=classes).astype(np.float64)
        members = one_hot(y, classes) / n_k
        means, confusion = phi_s.T @ members, f_s.T @ members  # (L, K), (K', K)
        m_t, mu_t = phi_t.mean(axis=0), f_t.mean(axis=0)
        inverse, q = _solve(confusion, mu_t)
        readout = means @ inverse  # R, (L, K')
        # A class weight, and 1 / (1 - leverage), of each source row.
        patients = int(g_s.max()) + 1
        shares = np.zeros((patients, classes))
        np.add.at(shares, (g_s, y), 1.0 / n_k[y])
        scale = q[y] / n_k[y] / (1.0 - np.minimum(shares[g_s, y], 0.9))
        own = (phi_s - means.T[y]) - (f_s - confusion.T[y]) @ readout.T
        own *= scale[:, None]
        leverage = np.minimum(np.bincount(g_t) / len(g_t), 0.9)
        other = (phi_t - m_t) - (f_t - mu_t) @ readout.T
        other *= (-1.0 / len(g_t) / (1.0 - leverage[g_t]))[:, None]
        influence = np.vstack(
            [group_sums(own, g_s, patients), group_sums(other, g_t, len(leverage))]
        )
        return cls(means @ q - m_t, influence, smallest_singular_value(confusion))


def _solve(confusion: FloatArray, marginal: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (A^+, q), q = arg min |A q - mu|^2 under sum q = 1, both of the same linear map.

    q = u + B (A B)^+ (mu - A u), u uniform and B an orthonormal basis of vectors of sum 0.
    """
    k = confusion.shape[1]
    u = np.full(k, 1.0 / k)
    basis = np.linalg.svd(np.ones((1, k)))[2][1:].T  # (K, K - 1)
    inverse = basis @ np.linalg.pinv(confusion @ basis)
    return inverse, u + inverse @ (marginal - confusion @ u)


def _large_classes(
    y: IntArray, groups: IntArray, classes: int
) -> tuple[npt.NDArray[np.bool_], int]:
    """Return which rows are of a class with enough patients, and how many classes have too few."""
    patients = np.array([len(np.unique(groups[y == k])) for k in range(classes)])
    return patients[y] >= MIN_PATIENTS, int(((patients > 0) & (patients < MIN_PATIENTS)).sum())
