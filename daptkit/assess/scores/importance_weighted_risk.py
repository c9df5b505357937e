"""Importance-weighted validation risk: the source's errors where the target's images lie."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from daptkit.assess.scores.inputs import ScoreInputs
from daptkit.shift.arrays import FloatArray, IntArray
from daptkit.shift.divergence import standardise_

MAX_WEIGHT = 20.0
"""Largest density ratio: beyond it one image would decide the risk."""
MIN_GROUPS = 4
FOLDS = 5
REGULARISATION = 0.1


def importance_weighted_risk(inputs: ScoreInputs) -> float:
    """Return the source's error weighted by how target-like its images are; lower is better.

    mean(w l) + eta mean(w) - eta, l = 1 where the candidate is wrong on a held-out source image,
    eta = -cov(w l, w) / var(w) (the control variate of DEV; 0 where w is constant), cut to [0, 1].
    w = min(20, (n_s / n_t) P(t | z) / P(s | z)) by logistic regression on the candidate's features
    z, over folds that never split a patient. Right under covariate shift whose target the source
    covers. NaN without features or with fewer than 4 patients of a domain.

    Reference: You et al. 2019, "Towards accurate model selection in deep unsupervised domain
    adaptation" (DEV); Sugiyama, Krauledat, Mueller 2007 (IWCV).
    """
    source, target = inputs.source_features, inputs.target_features
    if source is None or target is None:
        return float("nan")
    fewest = 1 + min(int(inputs.source_groups.max()), int(inputs.target_groups.max()))
    if fewest < MIN_GROUPS:
        return float("nan")
    w = density_ratio(source, target, inputs.source_groups, inputs.target_groups, inputs.seed)
    wrong = inputs.source_posterior.argmax(axis=1) != inputs.source_labels
    return controlled_risk(wrong.astype(np.float64), w)


def controlled_risk(loss: FloatArray, weights: FloatArray) -> float:
    """Return mean(w l) + eta mean(w) - eta, eta = -cov(w l, w) / var(w), cut to [0, 1].

    Args:
        loss: (N,) in [0, 1].
        weights: (N,) density ratios.
    """
    product = weights * loss
    spread = float(weights.var())
    eta = 0.0
    if spread > 1e-12:
        covariance = float(((product - product.mean()) * (weights - weights.mean())).mean())
        eta = -covariance / spread
    return float(np.clip(product.mean() + eta * weights.mean() - eta, 0.0, 1.0))


def density_ratio(
    source: FloatArray,
    target: FloatArray,
    source_groups: IntArray,
    target_groups: IntArray,
    seed: int = 0,
) -> FloatArray:
    """Return w(z) = p_t(z) / p_s(z) of each source image, (N,), at most 20, by held-out patients.

    Args:
        source: (N, D).
        target: (M, D).
        source_groups: (N,) patients, numbered from 0.
        target_groups: (M,) likewise.
        seed: of the folds.
    """
    x = np.vstack([source, target])
    standardise_(x)
    rng = np.random.default_rng(seed)
    n = len(source)
    domain = np.repeat([0, 1], [n, len(target)])
    fold = np.concatenate([_deal(g, rng) for g in (source_groups, target_groups)])
    weights = np.zeros(n)
    for k in range(fold.max() + 1):
        train, test = fold != k, fold[:n] == k
        if not test.any():
            # The target has a patient more than the source to deal out.
            continue
        model = LogisticRegression(C=REGULARISATION, max_iter=300)
        with warnings.catch_warnings():
            # Stopping early keeps the ratio closer to 1.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x[train], domain[train])
        log_odds = model.decision_function(x[:n][test])
        ratio = (domain[train] == 0).sum() / (domain[train] == 1).sum()
        weights[test] = ratio * np.exp(np.minimum(log_odds, 50.0))
    return np.minimum(weights, MAX_WEIGHT)


def _deal(groups: IntArray, rng: np.random.Generator) -> IntArray:
    """Return the fold of each row, patients dealt out evenly in random order, (N,)."""
    number = int(groups.max()) + 1
    fold = np.arange(number) % min(FOLDS, number)
    return np.asarray(rng.permutation(fold)[groups], dtype=np.int64)
