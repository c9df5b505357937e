"""Calibration of logits on held-out images by temperature, class biases and class scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import log_softmax

from daptkit.errors import DataError, UsageError, did_you_mean
from daptkit.shift.arrays import (
    FloatArray,
    IntArray,
    as_labels,
    as_matrix,
    as_weights,
    effective_sample_size,
)

MIN_IMAGES = 20
"""Held-out images below which nothing is fitted."""
MIN_IMAGES_PER_CLASS = 25
"""Held-out images per class from which on class biases are fitted."""
LOG_SCALE_BOUND = 5.0
BIAS_BOUND = 10.0
KINDS = ("identity", "temperature", "bcts", "vector")
"""Kinds of calibration, from the one without parameters to the one with most."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted map from logits to posteriors, softmax(scale * logits / temperature + bias).

    Args:
        kind: one of :data:`KINDS`.
        temperature: above 0; 1 where ``kind`` is ``"vector"``.
        bias: one value per class (zeros unless ``kind`` is ``"bcts"`` or ``"vector"``).
        n: number of held-out images.
        nll_before: their weighted mean negative log likelihood, uncalibrated.
        nll_after: the same after calibration, never above ``nll_before``.
        scale: one factor above 0 per class where ``kind`` is ``"vector"``, else empty.
    """

    kind: str
    temperature: float
    bias: tuple[float, ...]
    n: int = 0
    nll_before: float = 0.0
    nll_after: float = 0.0
    scale: tuple[float, ...] = ()

    @classmethod
    def identity(cls, num_classes: int) -> Calibration:
        """Return the calibration that changes nothing."""
        return cls(kind="identity", temperature=1.0, bias=(0.0,) * num_classes)

    def log_posterior(self, logits: npt.ArrayLike) -> FloatArray:
        """Return calibrated log posteriors (N, K) of logits (N, K).

        Raises:
            DataError: logits that are not finite or have another number of classes.
        """
        z = as_matrix(logits)
        if z.shape[1] != len(self.bias):
            raise DataError(
                f"logits have {z.shape[1]} columns, but the calibration {len(self.bias)} classes."
            )
        if self.scale:
            return _scaled_log_posterior(z, np.asarray(self.scale), np.asarray(self.bias))
        return _log_posterior(z, 1.0 / self.temperature, np.asarray(self.bias))

    def to_json(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_json` reads back exactly.

        ``scale`` is written where there is one, so that other kinds read as they always did.
        """
        scale = {"scale": list(self.scale)} if self.scale else {}
        return {
            "kind": self.kind,
            "temperature": self.temperature,
            "bias": list(self.bias),
            "n": self.n,
            "nll_before": self.nll_before,
            "nll_after": self.nll_after,
            **scale,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Calibration:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: missing or impossible values.
        """
        try:
            made = cls(
                kind=str(data["kind"]),
                temperature=float(data["temperature"]),
                bias=tuple(float(b) for b in data["bias"]),
                n=int(data["n"]),
                nll_before=float(data["nll_before"]),
                nll_after=float(data["nll_after"]),
                scale=tuple(float(s) for s in data.get("scale", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the stored calibration is not readable ({error}).") from error
        if not made.temperature > 0 or not np.isfinite((made.temperature, *made.bias)).all():
            raise DataError("the stored calibration has an impossible temperature or bias.")
        wanted = len(made.bias) if made.kind == "vector" else 0
        fits = len(made.scale) == wanted and np.isfinite(made.scale).all()
        if made.kind not in KINDS or not fits or not all(s > 0 for s in made.scale):
            raise DataError(
                f"the stored calibration of kind {made.kind!r} is not one that this version of "
                "daptkit reads; update daptkit."
            )
        return made


def fit_calibration(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    start: Calibration | None = None,
    kind: str | None = None,
) -> Calibration:
    """Fit bias-corrected temperature scaling, or ``kind``, by weighted maximum likelihood.

    minimise -sum_i w_i log softmax(a z_i + b)[y_i] / sum w + ((log a)^2 + |b|^2) / (2 n_eff),
    T = 1/a, n_eff Kish's effective sample size. The second term, a standard normal prior on log a
    and b, keeps separable data from T = 0. Below 25 held-out images of some class b stays 0
    (temperature scaling); below 20 images, or with one class only, nothing is fitted. Vector
    scaling has one a per class, with the same penalty, and raw logits, since a shift of a row then
    matters.

    Args:
        logits: (N, K).
        labels: (N,) class indices.
        weights: (N,), not negative; ones if ``None``.
        start: where the search begins, such as the fit of a similar sample.
        kind: one of :data:`KINDS`, whatever the number of images of a class; by that number if
            ``None``. :func:`daptkit.shift.choose_calibration` chooses one by cross-validation.

    Reference: Alexandari, Kundaje, Shrikumar 2020, arXiv:1901.06852; Guo et al. 2017,
    arXiv:1706.04599 (temperature, vector).

    Raises:
        DataError: arrays of wrong shape, non-finite logits, negative weights.
        UsageError: unknown kind.
    """
    if kind is not None and kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise UsageError(f"the calibration is one of {', '.join(KINDS)}, not {kind!r}.{hint}")
    z = as_matrix(logits)
    n, num_classes = z.shape
    y = as_labels(labels, n, num_classes)
    w = as_weights(weights, n)
    counts = np.bincount(y[w > 0], minlength=num_classes)
    before = _nll(z, y, w / w.sum(), 1.0, np.zeros(num_classes))
    identity = Calibration(
        kind="identity",
        temperature=1.0,
        bias=(0.0,) * num_classes,
        n=n,
        nll_before=before,
        nll_after=before,
    )
    if kind == "identity" or counts.sum() < MIN_IMAGES or (counts > 0).sum() < 2:
        return identity
    if kind == "vector":
        scales, bias = _search_scales(z, y, w)
        log_p = _scaled_log_posterior(z, scales, bias)
        after = float(-(w / w.sum() * log_p[np.arange(n), y]).sum())
        if not after <= before:
            return identity
        return replace(
            identity,
            kind="vector",
            bias=tuple(float(b) for b in bias),
            nll_after=after,
            scale=tuple(float(s) for s in scales),
        )
    with_bias = bool(counts.min() >= MIN_IMAGES_PER_CLASS) if kind is None else kind == "bcts"
    scale, bias = search(z, y, w, with_bias, start)
    after = _nll(z, y, w / w.sum(), scale, bias)
    if not after <= before:
        return identity
    return Calibration(
        kind="bcts" if with_bias else "temperature",
        temperature=1.0 / scale,
        bias=tuple(float(b) for b in bias),
        n=n,
        nll_before=before,
        nll_after=after,
    )


def _log_posterior(z: FloatArray, scale: float, bias: FloatArray) -> FloatArray:
    # A softmax ignores a shift of its row; shifting first keeps huge logits from overflowing.
    shifted = z - z.max(axis=1, keepdims=True)
    return np.asarray(log_softmax(scale * shifted + bias, axis=1), dtype=np.float64)


def _scaled_log_posterior(z: FloatArray, scale: FloatArray, bias: FloatArray) -> FloatArray:
    """Return log softmax(scale * z + bias); unlike a temperature, scales see a shift of the row."""
    return np.asarray(log_softmax(scale * z + bias, axis=1), dtype=np.float64)


def _nll(z: FloatArray, y: IntArray, share: FloatArray, scale: float, bias: FloatArray) -> float:
    return float(-(share * _log_posterior(z, scale, bias)[np.arange(len(y)), y]).sum())


def search(
    z: FloatArray,
    y: IntArray,
    w: FloatArray,
    with_bias: bool,
    start: Calibration | None = None,
    *,
    with_scale: bool = True,
) -> tuple[float, FloatArray]:
    """Minimise the penalised likelihood of :func:`fit_calibration` over (log a, b); return (a, b).

    Without ``with_bias`` b stays 0, without ``with_scale`` a stays 1.
    """
    num_classes = z.shape[1]
    share = w / w.sum()
    penalty = 1.0 / effective_sample_size(w)
    shifted = z - z.max(axis=1, keepdims=True)
    rows = np.arange(len(y))

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        scale = float(np.exp(theta[0]))
        bias = theta[1:] if with_bias else np.zeros(num_classes)
        log_p = log_softmax(scale * shifted + bias, axis=1)
        slope = np.exp(log_p)
        slope[rows, y] -= 1.0
        slope *= share[:, None]
        value = -float(share @ log_p[rows, y]) + 0.5 * penalty * float(theta @ theta)
        first = scale * float((slope * shifted).sum())
        gradient = np.concatenate([[first], slope.sum(axis=0) if with_bias else []])
        return value, gradient + penalty * theta

    theta = np.zeros(1 + num_classes if with_bias else 1)
    if start is not None:
        theta[0] = -np.log(start.temperature)
        theta[1:] = start.bias if with_bias else ()
    widest = LOG_SCALE_BOUND if with_scale else 0.0
    bounds = [(-widest, widest)] + [(-BIAS_BOUND, BIAS_BOUND)] * (len(theta) - 1)
    found = minimize(
        objective, theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200}
    )
    bias = np.asarray(found.x[1:], dtype=np.float64) if with_bias else np.zeros(num_classes)
    return float(np.exp(found.x[0])), bias


def _search_scales(z: FloatArray, y: IntArray, w: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Minimise the penalised likelihood of vector scaling over (log a, b); return (a, b)."""
    k = z.shape[1]
    share = w / w.sum()
    penalty = 1.0 / effective_sample_size(w)
    rows = np.arange(len(y))

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        scale = np.exp(theta[:k])
        log_p = log_softmax(scale * z + theta[k:], axis=1)
        slope = np.exp(log_p)
        slope[rows, y] -= 1.0
        slope *= share[:, None]
        value = -float(share @ log_p[rows, y]) + 0.5 * penalty * float(theta @ theta)
        gradient = np.concatenate([scale * (slope * z).sum(axis=0), slope.sum(axis=0)])
        return value, gradient + penalty * theta

    bounds = [(-LOG_SCALE_BOUND, LOG_SCALE_BOUND)] * k + [(-BIAS_BOUND, BIAS_BOUND)] * k
    found = minimize(
        objective,
        np.zeros(2 * k),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 500},
    )
    theta = np.asarray(found.x, dtype=np.float64)
    return np.exp(theta[:k]), theta[k:]
