"""How many labelled patients show a classifier's accuracy to within some points."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray, as_groups


@dataclass(frozen=True, kw_only=True)
class AuditSize:
    """Patients that an audit needs, and what the number rests on.

    Args:
        patients: to be labelled, with all of their images.
        images: about as many images.
        accuracy: assumed.
        margin: half width of the 95% interval wanted.
        images_per_patient: as a mean.
        correlation: intraclass correlation of being right within a patient.
        design_effect: images needed over images needed if all were of different patients.
    """

    patients: int
    images: int
    accuracy: float
    margin: float
    images_per_patient: float
    correlation: float
    design_effect: float

    def to_json(self) -> dict[str, float | int]:
        """Return plain values."""
        return dict(vars(self))


def audit_size(
    right: npt.ArrayLike,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    *,
    margin: float = 0.05,
) -> AuditSize:
    """Return how many target patients to label for accuracy within +- ``margin`` (95%).

    patients = ceil(1.96^2 a (1 - a) / margin^2 x D / m), D = 1 + (m' - 1) c: binomial, times the
    design effect of several images per patient. m = mean images of a target patient,
    m' = sum m_g^2 / sum m_g, c the intraclass correlation, a the accuracy, both of held-out source
    images, a moved to 1/2 by two margins, since a site that needs an audit may do worse, and c = 1
    where it cannot be worked out.

    Args:
        right: (N,) whether each held-out source image is predicted rightly.
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients; one image per patient if ``None``.
        margin: in (0, 0.5).

    Reference: Kish 1965, "Survey Sampling"; Donner, Koval 1980, doi:10.2307/2530491 (c by ANOVA).

    Raises:
        DataError: no image, or a margin outside its range.
    """
    correct = np.asarray(right, dtype=np.float64)
    if correct.ndim != 1 or not len(correct) or not 0.0 < margin < 0.5:
        raise DataError("an audit needs held-out source images and a margin between 0 and 0.5.")
    sizes = np.ones(1)
    if target_groups is not None:
        sizes = np.bincount(as_groups(target_groups, len(np.asarray(target_groups)))).astype(float)
    mean, heavy = float(sizes.mean()), float((sizes**2).sum() / sizes.sum())
    c = intraclass_correlation(correct, source_groups) if heavy > 1.0 else 0.0
    c = float(np.clip(1.0 if np.isnan(c) else c, 0.0, 1.0))
    observed = float(correct.mean())
    step = np.clip(0.5 - observed, -2.0 * margin, 2.0 * margin)
    a = observed + float(step)
    effect = 1.0 + (heavy - 1.0) * c
    needed = float(norm.ppf(0.975)) ** 2 * a * (1.0 - a) / margin**2 * effect
    patients = max(1, ceil(needed / mean))
    return AuditSize(
        patients=patients,
        images=round(patients * mean),
        accuracy=a,
        margin=margin,
        images_per_patient=mean,
        correlation=c,
        design_effect=effect,
    )


def intraclass_correlation(values: FloatArray, groups: npt.ArrayLike | None) -> float:
    """Return (B - W) / (B + (m0 - 1) W), B and W mean squares between and within groups.

    m0 = (N - sum m_g^2 / N) / (G - 1). NaN where no group has two values, or all values are equal.

    Args:
        values: (N,).
        groups: (N,).

    Reference: Donner, Koval 1980, doi:10.2307/2530491.
    """
    n = len(values)
    g = as_groups(groups, n)
    sizes = np.bincount(g).astype(np.float64)
    number = len(sizes)
    if number < 2 or number == n:
        return float("nan")
    means = np.bincount(g, values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum()) / (number - 1)
    within = float(((values - means[g]) ** 2).sum()) / (n - number)
    m0 = (n - float((sizes**2).sum()) / n) / (number - 1)
    total = between + (m0 - 1.0) * within
    return (between - within) / total if total > 0 else float("nan")
