"""Which calibration to use, by the likelihood of patients that its fit has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_labels, as_matrix, as_weights
from daptkit.shift.calibration import (
    KINDS,
    MIN_IMAGES,
    MIN_IMAGES_PER_CLASS,
    Calibration,
    fit_calibration,
)
from daptkit.shift.folds import grouped_folds

PLAIN = ("identity", "temperature")
"""Kinds without a value per class."""
FITTED = tuple(kind for kind in KINDS if kind != "identity")
"""Kinds that are fitted, for models that are known to be too sure: one standard error of few
images often hides that a temperature is right, whose own penalty keeps it near 1 anyway."""


@dataclass(frozen=True, kw_only=True)
class CalibrationChoice:
    """The chosen calibration, fitted on every image, and the figures behind the choice.

    Args:
        calibration: of the chosen kind.
        nll: kind to its weighted mean negative log likelihood on held-out patients, in nats; empty
            where nothing could be compared.
        standard_error: kind to the standard error, over patients, of its nll less the lowest.
        folds: number of folds, 0 where nothing could be compared.
        note: why not every kind was compared, empty where each was.
    """

    calibration: Calibration
    nll: dict[str, float]
    standard_error: dict[str, float]
    folds: int
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "kind": self.calibration.kind,
            "nll": dict(self.nll),
            "standard_error": dict(self.standard_error),
            "folds": self.folds,
            "note": self.note,
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
    limit: int | None = None,
) -> CalibrationChoice:
    """Choose identity, temperature, bias-corrected temperature or vector scaling.

    Each kind is fitted on all folds but one and scored on that one, patients never split. The kind
    with fewest parameters whose mean nll exceeds the lowest by at most one standard error (of the
    paired difference, over patients) is fitted on every image. Among a few hundred images the
    lowest nll alone would often be luck of the richest kind.

    What cannot be compared is not guessed: kinds with a value per class are left out where some
    class has fewer than 25 images, and where there is one patient, or fewer than 20 images, the
    calibration is a temperature, or none. ``note`` says so.

    Args:
        logits: (N, K) of held-out source images.
        labels: (N,) class indices.
        weights: (N,), not negative; ones if ``None``.
        groups: (N,) patients; one per image if ``None``.
        kinds: of :data:`daptkit.shift.calibration.KINDS`, in order of their parameters.
        folds: at least 2; fewer are used when there are fewer patients.
        seed: of the folds, and of what is drawn for ``limit``.
        limit: kinds are compared on about as many images at most, whole patients drawn at random;
            the chosen one is fitted on every image. ``None`` for all.

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
    compared, note = _comparable(kinds, y[w > 0], g, num_classes)
    part = _drawn(g, limit, seed)
    y_part, g_part = y[part], np.unique(g[part], return_inverse=True)[1]
    splits = min(folds, int(g_part.max()) + 1, int(np.bincount(y_part).max()))
    if not compared or splits < 2:
        kind = "temperature" if "temperature" in kinds else kinds[0]
        return CalibrationChoice(
            calibration=fit_calibration(z, y, w, kind=kind),
            nll={},
            standard_error={},
            folds=0,
            note=note or "too few images of any class are held out to compare calibrations",
        )
    fold = grouped_folds(y_part, g_part, splits, seed)
    z_part, w_part = z[part], w[part]
    losses = {k: _held_out(z_part, y_part, w_part, fold, k) for k in compared}  # (N,) each
    nll = {kind: float(w_part @ loss / w_part.sum()) for kind, loss in losses.items()}
    best = min(compared, key=lambda kind: nll[kind])
    error = {k: _standard_error(losses[k] - losses[best], w_part, g_part) for k in compared}
    chosen = next(kind for kind in compared if nll[kind] <= nll[best] + error[kind])
    return CalibrationChoice(
        calibration=fit_calibration(z, y, w, kind=chosen),
        nll=nll,
        standard_error=error,
        folds=splits,
        note=note,
    )


def _comparable(
    kinds: tuple[str, ...], labels: IntArray, groups: IntArray, num_classes: int
) -> tuple[tuple[str, ...], str]:
    """Return the kinds that the images can decide between, and why not all of them."""
    if len(labels) < MIN_IMAGES:
        return (), f"fewer than {MIN_IMAGES} images are held out, so nothing is calibrated"
    if groups.max() < 1:
        return (), "one patient alone is held out, so calibrations could not be compared"
    counts = np.bincount(labels, minlength=num_classes)
    few, none = int((counts < MIN_IMAGES_PER_CLASS).sum()), int((counts == 0).sum())
    plain = tuple(kind for kind in kinds if kind in PLAIN)
    if not few or not plain or plain == kinds:
        return kinds, ""
    lacking = f", {none} of them none" if none else ""
    return plain, (
        f"{few} of {num_classes} classes have fewer than {MIN_IMAGES_PER_CLASS} held-out images"
        f"{lacking}, so no calibration with a value per class was tried"
    )


def _drawn(groups: IntArray, limit: int | None, seed: int) -> IntArray:
    """Return the rows of patients drawn until they have ``limit`` images, all rows if fewer."""
    if limit is None or len(groups) <= limit:
        return np.arange(len(groups))
    order = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    sizes = np.cumsum(np.bincount(groups)[order])
    kept = order[: int(np.searchsorted(sizes, limit)) + 1]
    return np.flatnonzero(np.isin(groups, kept))


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
