"""Estimators of the target prior under label shift: BBSE, RLLS and EM."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, minimize, nnls

from daptkit.shift.arrays import FloatArray, as_matrix, as_prior, as_weights

SUM_ROW = 1e3
"""Weight of the equation sum q = 1 in least squares; what it leaves is scaled away."""
RLLS_ALPHA = 0.01
RLLS_DELTA = 0.05


def bbse_prior(confusion: npt.ArrayLike, marginal: npt.ArrayLike) -> FloatArray:
    """Return q = arg min |A q - mu|^2 over the probability simplex, (K,).

    Non-negative least squares with a heavy row for sum q = 1, so that a singular A gives some
    minimiser instead of an error or a negative prior.

    Args:
        confusion: A, (M, K), M >= K, from :func:`daptkit.shift.conditional_confusion`.
        marginal: mu, (M,), mean prediction on the target.

    Reference: Lipton, Wang, Smola 2018, arXiv:1802.03916; constraint as in Tachet des Combes
    et al. 2020, arXiv:2003.04475.

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    a = as_matrix(confusion, "confusion")
    mu = as_prior(marginal, a.shape[0], "marginal")
    system = np.vstack([a, np.full((1, a.shape[1]), SUM_ROW)])
    q = np.asarray(nnls(system, np.append(mu, SUM_ROW))[0], dtype=np.float64)
    return np.asarray(q / q.sum(), dtype=np.float64)


def rlls_prior(
    confusion: npt.ArrayLike,
    marginal: npt.ArrayLike,
    source_prior: npt.ArrayLike,
    n: int,
    *,
    alpha: float = RLLS_ALPHA,
) -> FloatArray:
    """Return q = p (1 + theta), (K,), from regularised learning under label shift.

    theta = arg min |C theta - (mu_t - mu_s)| + alpha rho |theta|, C = A diag(p), mu_s = A p the
    predicted source marginal, rho = 3 (2 log(2K/d) / (3n) + sqrt(2 log(2K/d) / n)), d = 0.05,
    under 1 + theta >= 0 and p . (1 + theta) = 1.

    Args:
        confusion: A, (M, K).
        marginal: mu_t, (M,).
        source_prior: p, (K,), of the held-out source images.
        n: number of held-out source images.
        alpha: strength of the regularisation, not negative.

    Reference: Azizzadenesheli et al. 2019, arXiv:1903.09734.

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    a = as_matrix(confusion, "confusion")
    k = a.shape[1]
    p = as_prior(source_prior, k, "source prior")
    joint = a * p
    gap = as_prior(marginal, a.shape[0], "marginal") - joint.sum(axis=1)
    log_term = 2.0 * np.log(2.0 * k / RLLS_DELTA)
    strength = alpha * 3.0 * (log_term / (3.0 * n) + np.sqrt(log_term / n))
    # Norms have no gradient at 0; the floor is far below any sampling error.
    floor = 1e-10

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        residual = joint @ theta - gap
        fit = float(np.sqrt(residual @ residual + floor))
        size = float(np.sqrt(theta @ theta + floor))
        return fit + strength * size, joint.T @ residual / fit + strength * theta / size

    start = bbse_prior(a, marginal) / np.maximum(p, 1e-12) - 1.0
    begin = np.where(p > 0, np.clip(start, -1.0, 1e3), 0.0)
    found = minimize(
        objective,
        0.5 * begin,
        jac=True,
        method="SLSQP",
        bounds=Bounds(-1.0, np.inf),
        constraints=LinearConstraint(p[None, :], 0.0, 0.0),
        options={"maxiter": 300, "ftol": 1e-10},
    )
    theta = found.x if np.isfinite(found.x).all() else np.zeros(k)
    return as_prior(np.maximum(p * (1.0 + theta), 0.0), k)


def em_prior(
    log_posterior: npt.ArrayLike,
    source_prior: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    start: npt.ArrayLike | None = None,
    tolerance: float = 1e-7,
    max_iterations: int = 1000,
) -> FloatArray:
    """Return the maximum likelihood target prior by expectation maximisation, (K,).

    q <- mean_i q r_i / (q . r_i), r_ik = P_s(k | x_i) / pi_k, until q moves less than
    ``tolerance`` in L1. The likelihood is concave, so the start does not matter.

    Args:
        log_posterior: (N, K) calibrated log posteriors of the target.
        source_prior: pi, (K,): the *mean calibrated posterior* on source validation, weighted by
            the class weights in force; label frequencies would bias the answer.
        weights: (N,) of target rows, such as bootstrap counts.
        start: first q, by default pi.
        tolerance: L1 change that ends the iteration.
        max_iterations: its upper limit.

    Reference: Saerens, Latinne, Decaestecker 2002, doi:10.1162/089976602753284446; Alexandari,
    Kundaje, Shrikumar 2020, arXiv:1901.06852.

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    log_p = np.maximum(as_matrix(log_posterior, "log posteriors"), -100.0)
    n, k = log_p.shape
    pi = as_prior(source_prior, k, "source prior")
    w = as_weights(weights, n)
    keep = w > 0
    w = w[keep] / w.sum()
    log_ratio = log_p[keep] - np.log(np.maximum(pi, 1e-12))
    ratio = np.exp(log_ratio - log_ratio.max(axis=1, keepdims=True))
    # Start inside the simplex: EM can never leave a class at exactly 0.
    q = 0.999 * as_prior(pi if start is None else start, k) + 0.001 / k
    for _ in range(max_iterations):
        updated = q * ((w / (ratio @ q)) @ ratio)
        updated /= updated.sum()
        change = float(np.abs(updated - q).sum())
        q = updated
        if change < tolerance:
            break
    return np.asarray(q, dtype=np.float64)
