"""What differs between the images of two sites: statistics and covariates, patient by patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray, IntArray, as_groups
from daptkit.shift.effects import (
    NAN,
    cliffs_delta,
    cohens_d,
    cramers_v,
    holm,
    rank_p,
    table_p,
)

MISSING = "(missing)"
"""Category of values that are empty or ``None``."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one statistic or covariate differs between two sites, each patient counted once.

    Args:
        name: of the statistic or covariate.
        kind: ``"number"`` or ``"category"``.
        source: mean over the source's patients; of a category ``None``.
        target: mean over the target's patients.
        effect: Cliff's delta (above 0: larger at the target) or Cramer's V.
        low: lower end of delta's 95% interval; NaN for a category.
        high: upper end.
        d: Cohen's d; NaN for a category or without spread.
        d_low: lower end of its 95% interval.
        d_high: upper end.
        p: two-sided, NaN where it cannot be tested.
        p_adjusted: Holm's, over everything compared at once.
        shares: category to its share of patients at (source, target).
        source_patients: patients with a value.
        target_patients: patients with a value.
    """

    name: str
    kind: str
    source: float | None
    target: float | None
    effect: float
    low: float
    high: float
    d: float
    d_low: float
    d_high: float
    p: float
    source_patients: int
    target_patients: int
    p_adjusted: float = NAN
    shares: Mapping[str, tuple[float, float]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, NaN as ``None``."""
        plain: dict[str, Any] = dict(vars(self))
        for key, value in plain.items():
            if isinstance(value, float) and not np.isfinite(value):
                plain[key] = None
        if self.shares is not None:
            plain["shares"] = {k: list(v) for k, v in self.shares.items()}
        return plain


def compare_appearance(
    source: Mapping[str, npt.ArrayLike],
    target: Mapping[str, npt.ArrayLike],
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> tuple[Difference, ...]:
    """Compare statistics and covariates that both sites have, the largest effects first.

    A number of a patient is the mean over its images, a category its most frequent one; NaN is
    left out and an empty text is the category ``(missing)``. Numbers get Cliff's delta, Cohen's d
    and a rank test, categories Cramer's V and a permutation test of patients. p values are adjusted
    together by Holm's method. A value is a category if it is text.

    Args:
        source: name -> (N,) numbers, as of :func:`daptkit.shift.image_statistics`, or texts, such
            as the scanner's manufacturer.
        target: name -> (M,).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        seed: of the permutation test.

    Raises:
        DataError: values whose number is not that of the images, or text at one site only.
    """
    found = []
    for name in (name for name in source if name in target):
        s, t = _values(name, source[name]), _values(name, target[name])
        if (s.dtype.kind == "U") != (t.dtype.kind == "U"):
            raise DataError(f"{name!r} is text at one site and a number at the other.")
        g_s, g_t = _groups(name, source_groups, s), _groups(name, target_groups, t)
        compare = _categories if s.dtype.kind == "U" else _numbers
        found.append(compare(name, s, t, g_s, g_t, seed))
    adjusted = holm([d.p for d in found])
    found = [replace(d, p_adjusted=p) for d, p in zip(found, adjusted, strict=True)]
    return tuple(sorted(found, key=lambda d: -abs(d.effect) if np.isfinite(d.effect) else 1.0))


def _values(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"values of {name!r} must be (N,), not {array.shape}.")
    if array.dtype.kind in "OUS":
        texts = ["" if v is None else str(v).strip() for v in array.tolist()]
        return np.array([text or MISSING for text in texts], dtype=np.str_)
    return array.astype(np.float64)


def _groups(name: str, groups: npt.ArrayLike | None, values: npt.NDArray[Any]) -> IntArray:
    if groups is not None and len(np.asarray(groups)) != len(values):
        raise DataError(f"{name!r} has {len(values)} values for {len(np.asarray(groups))} images.")
    return as_groups(groups, len(values))


def _numbers(
    name: str, s: FloatArray, t: FloatArray, g_s: IntArray, g_t: IntArray, seed: int
) -> Difference:
    a, b = _patient_means(s, g_s), _patient_means(t, g_t)
    delta, low, high = cliffs_delta(a, b)
    d, d_low, d_high = cohens_d(a, b)
    return Difference(
        name=name,
        kind="number",
        source=float(a.mean()) if len(a) else None,
        target=float(b.mean()) if len(b) else None,
        effect=delta,
        low=low,
        high=high,
        d=d,
        d_low=d_low,
        d_high=d_high,
        p=rank_p(a, b),
        source_patients=len(a),
        target_patients=len(b),
    )


def _categories(
    name: str,
    s: npt.NDArray[np.str_],
    t: npt.NDArray[np.str_],
    g_s: IntArray,
    g_t: IntArray,
    seed: int,
) -> Difference:
    names, codes = np.unique(np.concatenate([s, t]), return_inverse=True)
    table = np.stack(
        [
            np.bincount(_most_frequent(codes[rows], groups, len(names)), minlength=len(names))
            for rows, groups in ((slice(0, len(s)), g_s), (slice(len(s), None), g_t))
        ]
    ).astype(np.int64)
    shares = table / table.sum(axis=1, keepdims=True)
    return Difference(
        name=name,
        kind="category",
        source=None,
        target=None,
        effect=cramers_v(table),
        low=NAN,
        high=NAN,
        d=NAN,
        d_low=NAN,
        d_high=NAN,
        p=table_p(table, seed),
        source_patients=int(table[0].sum()),
        target_patients=int(table[1].sum()),
        shares={str(n): (float(a), float(b)) for n, a, b in zip(names, *shares, strict=True)},
    )


def _patient_means(values: FloatArray, groups: IntArray) -> FloatArray:
    """Return each patient's mean of the values that are finite, patients without any left out."""
    known = np.isfinite(values)
    counts = np.bincount(groups[known], minlength=int(groups.max()) + 1)
    sums = np.bincount(groups[known], values[known], minlength=len(counts))
    return np.asarray(sums[counts > 0] / counts[counts > 0])


def _most_frequent(codes: IntArray, groups: IntArray, number: int) -> IntArray:
    """Return each patient's most frequent code, the first of equals, (G,)."""
    counts = np.zeros((int(groups.max()) + 1, number), np.int64)
    np.add.at(counts, (groups, codes), 1)
    return np.asarray(np.argmax(counts, axis=1), dtype=np.int64)
