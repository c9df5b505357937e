"""Which calibration to use, by the likelihood of patients that its fit has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_labels, as_matrix, as_weights
from daptkit.shift.calibration import KINDS, Calibration, fit_calibration
from daptkit.shift.folds import grouped_folds


@dataclass(frozen=True, kw_only=True)
class CalibrationChoice:
    """The chosen calibration, fitted on every image, and the figures behind the choice.

    Args:
        calibration: of the chosen kind.
        nll: kind to its weighted mean negative log likelihood on held-out patients, in nats; empty
            where nothing could be held out and the kind is the default one.
        standard_error: kind to the standard error, over patients, of its nll less the lowest.
        folds: number of folds, 0 where nothing could be held out.
    """

    calibration: Calibration
    nll: dict[str, float]
    standard_error: dict[str, float]
    folds: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "kind": self.calibration.kind,
            "nll": dict(self.nll),
            "standard_error": dict(self.standard_error),
            "folds": self.folds,
        }


def choose_calibration(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    groups: npt.ArrayLike | None = None,
    kinds: tuple[str, ...] = KINDS,
    folds: int = 5,
    seed: int = 0,
) -> CalibrationChoice:
    """Choose identity, temperature, bias-corrected temperature or vector scaling.

    Each kind is fitted on all folds but one and scored on that one, patients never split. The kind
    with fewest parameters whose mean nll exceeds the lowest by at most one standard error (of the
    paired difference, over patients) is fitted on every image. Among a few hundred images the
    lowest nll alone would often be luck of the richest kind.

    Args:
        logits: (N, K) of held-out source images.
        labels: (N,) class indices.
        weights: (N,), not negative; ones if ``None``.
        groups: (N,) patients; one per image if ``None``.
        kinds: of :data:`daptkit.shift.calibration.KINDS`, in order of their parameters.
        folds: at least 2; fewer are used when there are fewer patients.
        seed: of the folds.

    Reference: Alexandari, Kundaje, Shrikumar 2020, arXiv:1901.06852; Guo et al. 2017,
    arXiv:1706.04599; Breiman et al. 1984, "Classification and Regression Trees" (one standard
    error).

    Raises:
        DataError: arrays of wrong shape, non-finite logits, negative weights.
        UsageError: unknown kind.
    """
    z = as_matrix(logits)
    n, num_classes = z.shape
    y = as_labels(labels, n, num_classes)
    w = as_weights(weights, n)
    g = as_groups(groups, n)
    splits = min(folds, int(g.max()) + 1, int(np.bincount(y).max()))
    if splits < 2:
        return CalibrationChoice(
            calibration=fit_calibration(z, y, w), nll={}, standard_error={}, folds=0
        )
    fold = grouped_folds(y, g, splits, seed)
    losses = {kind: _held_out(z, y, w, fold, kind) for kind in kinds}  # (N,) each
    nll = {kind: float(w @ loss / w.sum()) for kind, loss in losses.items()}
    best = min(kinds, key=lambda kind: nll[kind])
    error = {kind: _standard_error(losses[kind] - losses[best], w, g) for kind in kinds}
    chosen = next(kind for kind in kinds if nll[kind] <= nll[best] + error[kind])
    return CalibrationChoice(
        calibration=fit_calibration(z, y, w, kind=chosen),
        nll=nll,
        standard_error=error,
        folds=splits,
    )


def _held_out(z: FloatArray, y: IntArray, w: FloatArray, fold: IntArray, kind: str) -> FloatArray:
    """Return each row's negative log likelihood by a fit without its fold, (N,)."""
    loss = np.zeros(len(y))
    for k in np.unique(fold):
        train, test = fold != k, np.flatnonzero(fold == k)
        if w[train].sum() > 0:
            fitted = fit_calibration(z[train], y[train], w[train], kind=kind)
        else:
            fitted = Calibration.identity(z.shape[1])
        loss[test] = -fitted.log_posterior(z[test])[np.arange(len(test)), y[test]]
    return loss


def _standard_error(difference: FloatArray, w: FloatArray, g: IntArray) -> float:
    """Return sqrt(G / (G - 1) sum_g (sum_{i in g} w_i (d_i - mean))^2) / sum w."""
    mean = float(w @ difference / w.sum())
    sums = np.bincount(g, weights=w * (difference - mean))
    number = len(sums)
    return float(np.sqrt(number / max(number - 1, 1) * (sums @ sums)) / w.sum())
