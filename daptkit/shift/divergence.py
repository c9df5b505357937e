"""Distances between two samples of features: proxy A-distance, MMD^2 and k-NN domain accuracy.

Each is NaN, without a warning, where it cannot be measured: fewer than 15 images (or 2 patients)
of a domain, or features that are all alike. Each draws a limited number of images unless ``limit``
is ``None``; memory then grows with the number of images, not of pairs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_matrix, as_weights
from daptkit.shift.embedding import differs
from daptkit.shift.pairs import SquaredDistances, bandwidth, kernel_sums, mean_kernels, nearest

MIN_IMAGES = 15
MAX_PER_DOMAIN = 2000
MAX_FOR_DISTANCES = 1000
NAN = float("nan")


def proxy_a_distance(
    source: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
    limit: int | None = MAX_PER_DOMAIN,
) -> float:
    """Return 2 (1 - 2 err), err the held-out error of a linear domain classifier, in [0, 2].

    The classifier is L2 logistic regression on standardised features, over folds that never split
    a patient, on equally many images of both domains. 0: the domains cannot be told apart; 2:
    perfectly.

    Args:
        source: (N, D).
        target: (M, D).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        folds: at least 2.
        seed: of subsample and folds.
        limit: images of a domain at most, ``None`` for all.

    Reference: Ben-David et al. 2007, "Analysis of representations for domain adaptation";
    Ganin et al. 2016, arXiv:1505.07818.

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    pair = _Pair.balanced(source, target, source_groups, target_groups, limit, seed)
    if pair is None:
        return NAN
    fold = pair.folds(min(folds, pair.fewest_groups()), seed)
    errors = np.zeros(len(pair.domain))
    for test in (fold == k for k in range(fold.max() + 1)):
        train = ~test
        model = LogisticRegression(C=0.1, max_iter=200)
        with warnings.catch_warnings():
            # Stopping early only makes the distance smaller, and hardly so at this strength.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(pair.x[train], pair.domain[train])
        errors[test] = model.predict(pair.x[test]) != pair.domain[test]
    err = 0.5 * (errors[pair.domain == 0].mean() + errors[pair.domain == 1].mean())
    return float(np.clip(2.0 * (1.0 - 2.0 * err), 0.0, 2.0))


def mmd2(
    source: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    source_weights: npt.ArrayLike | None = None,
    seed: int = 0,
    limit: int | None = MAX_FOR_DISTANCES,
) -> float:
    """Return the unbiased squared maximum mean discrepancy; about 0, also below, for equal laws.

    sum_{i != j} w_i w_j k(x_i, x_j) / (S^2 - sum w^2) + sum_{i != j} k(y_i, y_j) / (M (M - 1))
    - 2 sum_ij w_i k(x_i, y_j) / (S M), S = sum w; k the mean of exp(-d^2 / (2^b m)),
    b = -2 ... 2, m the median squared distance of the pooled sample (its mean where the median is
    0). Class weights w = q / p remove pure label shift. Of more than 2000 images, m is the median
    of 2000 and distances are computed in float32.

    Args:
        source: (N, D).
        target: (M, D).
        source_weights: (N,), not negative; ones if ``None``.
        seed: of the subsample.
        limit: images of a domain at most, ``None`` for all; time grows with its square.

    Reference: Gretton et al. 2012, "A kernel two-sample test", JMLR 13; Long et al. 2015,
    arXiv:1502.02791 (several bandwidths).

    Raises:
        DataError: arrays of wrong shape or not finite, or negative weights.
    """
    x, y = matrices(source, target)
    return _mmd2s(x, y, [as_weights(source_weights, len(x))], seed, limit)[0]


def _mmd2s(
    x: FloatArray, y: FloatArray, weightings: Sequence[FloatArray], seed: int, limit: int | None
) -> list[float]:
    """Return MMD^2 under each weighting (N,) of the source's rows."""
    rng = np.random.default_rng(seed)
    rows, columns = subsample(len(x), limit, rng), subsample(len(y), limit, rng)
    n, m = len(rows), len(columns)
    found = [NAN] * len(weightings)
    if min(n, m) < MIN_IMAGES:
        return found
    pooled = np.vstack([x[rows], y[columns]])
    drawn = {place: weights[rows] for place, weights in enumerate(weightings)}
    off = {place: float(w.sum() ** 2 - (w * w).sum()) for place, w in drawn.items()}
    usable = [place for place in drawn if off[place] > 0.0]
    if not usable or not differs(pooled):
        return found
    members = np.zeros((len(usable), n + m, 2))
    for one, place in zip(members, usable, strict=True):
        one[:n, 0], one[n:, 1] = drawn[place], 1.0
    several = kernel_sums(pooled, list(members), bandwidth(pooled, seed))
    for sums, place in zip(several, usable, strict=True):
        w = drawn[place]
        within_x = (sums[0, 0] - float((w * w).sum())) / off[place]
        within_y = (sums[1, 1] - m) / (m * (m - 1))
        found[place] = float(within_x + within_y - 2.0 * sums[0, 1] / (w.sum() * m))
    return found


def knn_domain_accuracy(
    source: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    k: int = 5,
    seed: int = 0,
    limit: int | None = MAX_FOR_DISTANCES,
) -> float:
    """Return how often the k nearest images of other patients tell an image's domain, in [0, 1].

    Leave-one-patient-out majority vote on standardised features, equally many images of both
    domains; about 0.5 for well mixed domains, 1 for separate ones.

    Args:
        source: (N, D).
        target: (M, D).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        k: neighbours, odd.
        seed: of the subsample.
        limit: images of a domain at most, ``None`` for all; time grows with its square.

    Reference: Lopez-Paz, Oquab 2017, arXiv:1610.06545 (classifier two-sample tests).

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    pair = _Pair.balanced(source, target, source_groups, target_groups, limit, seed)
    neighbours = None if pair is None else nearest(pair.x, pair.groups, k)
    if pair is None or neighbours is None:
        return NAN
    vote = pair.domain[neighbours].mean(axis=1) > 0.5
    return float((vote == (pair.domain == 1)).mean())


def divergences(
    source: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    source_weights: npt.ArrayLike | None = None,
    reweighted: npt.ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return ``proxy_a_distance``, ``mmd2`` and ``knn_domain_accuracy`` of two samples.

    Args:
        source: (N, D) features.
        target: (M, D) features.
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        source_weights: (N,) importance weights for MMD^2.
        reweighted: (N,) others, for a further ``mmd2_weighted``.
        seed: of subsamples and folds.

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    x, y = matrices(source, target)
    weightings = [source_weights, *([] if reweighted is None else [reweighted])]
    mmd2s = _mmd2s(
        x, y, [as_weights(weights, len(x)) for weights in weightings], seed, MAX_FOR_DISTANCES
    )
    return {
        "proxy_a_distance": proxy_a_distance(
            source, target, source_groups=source_groups, target_groups=target_groups, seed=seed
        ),
        "mmd2": mmd2s[0],
        "knn_domain_accuracy": knn_domain_accuracy(
            source, target, source_groups=source_groups, target_groups=target_groups, seed=seed
        ),
        **({} if reweighted is None else {"mmd2_weighted": mmd2s[1]}),
    }


def mean_kernel(x: FloatArray) -> FloatArray | None:
    """Return the kernel matrix (N, N) of :func:`mmd2`; ``None`` for features that are all alike."""
    if not differs(x):
        return None
    every = slice(0, len(x))
    kernel = mean_kernels(SquaredDistances(x).block(every, every), bandwidth(x, seed=0))
    return kernel.astype(np.float64, copy=False)


class _Pair:
    """Standardised rows of both domains, equally many of each."""

    def __init__(self, x: FloatArray, domain: IntArray, groups: IntArray) -> None:
        self.x = x  # (2m, D)
        self.domain = domain  # (2m,) 0 source, 1 target
        self.groups = groups  # (2m,) no patient is shared by the domains

    @classmethod
    def balanced(
        cls,
        source: npt.ArrayLike,
        target: npt.ArrayLike,
        source_groups: npt.ArrayLike | None,
        target_groups: npt.ArrayLike | None,
        limit: int | None,
        seed: int,
    ) -> _Pair | None:
        """Return the pair, or ``None`` where nothing can be measured."""
        s, t = matrices(source, target)
        g_s, g_t = as_groups(source_groups, len(s)), as_groups(target_groups, len(t))
        m = min(len(s), len(t), len(s) if limit is None else limit)
        if m < MIN_IMAGES:
            return None
        rng = np.random.default_rng(seed)
        rows_s, rows_t = subsample(len(s), m, rng), subsample(len(t), m, rng)
        pooled = np.vstack([s[rows_s], t[rows_t]])
        groups = np.concatenate([g_s[rows_s], g_t[rows_t] + g_s.max() + 1])
        if not differs(pooled):
            return None
        standardise_(pooled)
        pair = cls(pooled, np.repeat(np.arange(2, dtype=np.int64), m), groups)
        return pair if pair.fewest_groups() >= 2 else None

    def fewest_groups(self) -> int:
        """Return the number of patients of the domain that has fewer."""
        return min(len(np.unique(self.groups[self.domain == d])) for d in (0, 1))

    def folds(self, splits: int, seed: int) -> IntArray:
        """Return the fold of each row, (2m,): no patient is split, domains are spread evenly.

        Patients are dealt out in random order, those of most images first, each to the fold that
        has fewest images of the patient's domain, as in scikit-learn's ``StratifiedGroupKFold``,
        which takes minutes for tens of thousands of patients.
        """
        _, first, of_row, sizes = np.unique(
            self.groups, return_index=True, return_inverse=True, return_counts=True
        )
        order = np.random.default_rng(seed).permutation(len(sizes))
        order = order[np.argsort(-sizes[order], kind="stable")]
        images = [[0] * splits, [0] * splits]
        fold = np.empty(len(sizes), np.int64)
        domains = self.domain[first[order]].tolist()
        for patient, domain in zip(order.tolist(), domains, strict=True):
            here = images[domain]
            fold[patient] = chosen = min(
                range(splits), key=lambda k: (here[k], images[0][k] + images[1][k])
            )
            here[chosen] += int(sizes[patient])
        return fold[of_row]


def matrices(source: npt.ArrayLike, target: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return two finite matrices of equally many columns.

    Raises:
        DataError: they are not.
    """
    s, t = as_matrix(source, "source features"), as_matrix(target, "target features")
    if s.shape[1] != t.shape[1]:
        raise DataError(f"features of {s.shape[1]} and {t.shape[1]} columns cannot be compared.")
    return s, t


def subsample(n: int, limit: int | None, rng: np.random.Generator) -> IntArray:
    """Return at most ``limit`` of n rows, sorted."""
    if limit is None or n <= limit:
        return np.arange(n, dtype=np.int64)
    return np.sort(rng.choice(n, limit, replace=False)).astype(np.int64)


def standardise_(x: FloatArray) -> None:
    """Give each column mean 0 and variance 1, in place."""
    scale = x.std(axis=0)
    x -= x.mean(axis=0)
    # Near-constant channels hold rounding errors only, which a division would blow up.
    x /= np.where(scale > 1e-6 * max(float(scale.max()), 1e-12), scale, np.inf)
