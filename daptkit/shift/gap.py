"""What label shift leaves unexplained of the distance between two domains' features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from daptkit.shift.arrays import (
    FloatArray,
    IntArray,
    as_groups,
    as_labels,
    as_prior,
    one_hot,
)
from daptkit.shift.divergence import (
    MAX_FOR_DISTANCES,
    MIN_IMAGES,
    NAN,
    matrices,
    mean_kernel,
    subsample,
)

MIN_PATIENTS = 5
"""Patients of a class below which its distance to other classes is not measured."""


def feature_gap(
    source: npt.ArrayLike,
    labels: npt.ArrayLike,
    target: npt.ArrayLike,
    target_prior: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> float:
    """Return the domains' distance after re-weighting, in units of that between classes.

    MMD^2(sum_k q_k S_k, T) / mean_{j<k} MMD^2(S_j, S_k), S_k the source's features of class k and T
    the target's, unbiased and over pairs of different patients, all under the kernel of
    :func:`daptkit.shift.mmd2`. About 0, also below, under label shift alone, P_s(x|y) = P_t(x|y),
    and a right q; a classifier that maps the whole target to one class cannot hide a shift from it.
    At most 1000 images of a domain. NaN where it cannot be measured: fewer than 15 images of a
    domain, fewer than two classes with 5 patients, or features that are all alike.

    Args:
        source: (N, D).
        labels: (N,) class indices.
        target: (M, D).
        target_prior: q, (K,).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        seed: of the subsample.

    Reference: Gretton et al. 2012, "A kernel two-sample test", JMLR 13; class weights as in
    Lipton, Wang, Smola 2018, arXiv:1802.03916.

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    x, t = matrices(source, target)
    q = as_prior(target_prior, len(np.asarray(target_prior)), "target prior")
    y = as_labels(labels, len(x), len(q))
    g_x, g_t = as_groups(source_groups, len(x)), as_groups(target_groups, len(t))
    rng = np.random.default_rng(seed)
    rows, columns = (subsample(len(v), MAX_FOR_DISTANCES, rng) for v in (x, t))
    x, y, g_x, t, g_t = x[rows], y[rows], g_x[rows], t[columns], g_t[columns]
    kernel = mean_kernel(np.vstack([x, t]))
    patients = np.array([len(np.unique(g_x[y == k])) for k in range(len(q))])
    measured = patients >= MIN_PATIENTS
    if min(len(x), len(t)) < MIN_IMAGES or measured.sum() < 2 or kernel is None:
        return NAN
    q = np.where(measured, q, 0.0)
    if len(np.unique(g_t)) < MIN_PATIENTS or q.sum() <= 0:
        return NAN
    groups = np.concatenate([g_x, g_t + g_x.max() + 1])
    members = np.zeros((len(groups), len(q) + 1))  # a column for each class, the last for T
    members[: len(x), :-1] = one_hot(y, len(q))
    members[len(x) :, -1] = 1.0
    inner = _inner_products(kernel, members, groups)
    mixture = np.append(q / q.sum(), -1.0)
    classes = inner[:-1, :-1][np.ix_(measured, measured)]
    between = np.diag(classes)[:, None] + np.diag(classes) - 2.0 * classes
    separation = float(between[np.triu_indices(len(classes), 1)].mean())
    return float(mixture @ inner @ mixture) / separation if separation > 0 else NAN


def _inner_products(kernel: FloatArray, members: FloatArray, groups: IntArray) -> FloatArray:
    """Return the mean kernel of every two samples over pairs of different patients, (S, S)."""
    different = (groups[:, None] != groups[None, :]).astype(np.float64)
    pairs = members.T @ different @ members
    sums = members.T @ (kernel * different) @ members
    return np.asarray(sums / np.maximum(pairs, 1.0), dtype=np.float64)
