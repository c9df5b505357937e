"""Do the features of two domains follow one law? MMD^2, patients permuted as whole units."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from daptkit.shift.arrays import FloatArray, IntArray, as_groups
from daptkit.shift.divergence import MIN_IMAGES, NAN, matrices
from daptkit.shift.embedding import RealArray, group_sums, kernel_embedding

PERMUTATIONS = 999
MIN_PATIENTS = 5
"""Patients of a domain below which nothing is tested: 5 against 5 have 252 divisions."""

_NUMBERS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class ShiftTest:
    """One test: its statistic, its p value and what they rest on.

    Args:
        statistic: the value observed, NaN where nothing could be tested.
        p: (b + 1) / (B + 1), b of B resamples at least as extreme; NaN where nothing was tested.
        resamples: B.
        source_images: images used.
        target_images: images used.
        source_patients: patients they are of.
        target_patients: patients they are of.
        note: why nothing was tested, or what was left out; empty otherwise.
    """

    statistic: float
    p: float
    resamples: int
    source_images: int
    target_images: int
    source_patients: int
    target_patients: int
    note: str = ""

    @property
    def tested(self) -> bool:
        """Whether there is a p value."""
        return bool(np.isfinite(self.p))

    def to_json(self) -> dict[str, float | int | str | None]:
        """Return plain values, NaN as ``None``."""
        return {
            "statistic": self.statistic if np.isfinite(self.statistic) else None,
            "p": self.p if self.tested else None,
            "resamples": self.resamples,
            "source_images": self.source_images,
            "target_images": self.target_images,
            "source_patients": self.source_patients,
            "target_patients": self.target_patients,
            "note": self.note,
        }


def domain_test(
    source: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> ShiftTest:
    """Test whether two domains' features follow one law, by permutation of whole patients.

    MMD^2 = |mean phi(x) - mean phi(y)|^2, phi of :func:`daptkit.shift.embedding.kernel_embedding`;
    p = (b + 1) / (B + 1), b of B random divisions of the patients with at least that value. Images
    of a patient are alike, so permuting images calls every pair of sites different. Patients are
    exchangeable only if they have about equally many images at both sites: where they have not, a
    patient keeps as many randomly chosen images as the patient of equal rank at the other site has,
    all of its own if that is fewer.

    Args:
        source: (N, D).
        target: (M, D).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        permutations: B.
        seed: of permutations, landmarks and images that are kept.

    Reference: Gretton et al. 2012, "A kernel two-sample test", JMLR 13; Phipson, Smyth 2010,
    doi:10.2202/1544-6115.1585 (the p value).

    Raises:
        DataError: arrays of wrong shape or not finite.
    """
    x, y = matrices(source, target)
    g_x, g_y = as_groups(source_groups, len(x)), as_groups(target_groups, len(y))
    rng = np.random.default_rng(seed)
    rows_x, rows_y = matched_images(g_x, g_y, rng)
    left_out = len(x) + len(y) - len(rows_x) - len(rows_y)
    g_x = np.unique(g_x[rows_x], return_inverse=True)[1].astype(np.int64)
    g_y = np.unique(g_y[rows_y], return_inverse=True)[1].astype(np.int64)
    none = untested(g_x, g_y)
    if none.note:
        return none
    n_x, n_y = none.source_patients, none.target_patients
    phi = kernel_embedding(np.vstack([x[rows_x], y[rows_y]]), seed)
    if phi is None:
        return replace(none, note="the features are all alike")
    groups = np.concatenate([g_x, g_y + n_x])
    sizes = np.bincount(groups, minlength=n_x + n_y).astype(np.float64)
    phi -= phi.mean(axis=0, dtype=np.float64).astype(phi.dtype)
    sums = group_sums(phi, groups, n_x + n_y)
    value, p = permuted_mmd2(sums, sizes, n_x, permutations, rng)
    note = f"{left_out} images left out, so that patients have equally many" if left_out else ""
    return replace(none, statistic=value, p=p, resamples=permutations, note=note)


def permuted_mmd2(
    sums: FloatArray, sizes: FloatArray, n_source: int, permutations: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return MMD^2 and its p value over divisions of the patients.

    Args:
        sums: (G, L) sums of each patient's centred embedded images, the source's patients first.
        sizes: (G,) images of each patient.
        n_source: patients of the source.
        permutations: B.
        rng: of the divisions.
    """
    first = np.arange(len(sizes)) < n_source
    light: RealArray = sums.astype(np.float32) if len(sums) > 2000 else sums

    def mmd2(members: FloatArray) -> FloatArray:
        """Return the values of divisions (B, G), (B,)."""
        inside = members @ sizes
        total = np.asarray(members.astype(light.dtype) @ light, dtype=np.float64)
        rest = light.sum(axis=0, dtype=np.float64) - total
        gap = total / inside[:, None] - rest / (sizes.sum() - inside)[:, None]
        return np.asarray((gap * gap).sum(axis=1))

    observed = float(mmd2(first[None].astype(np.float64))[0])
    beyond = 0
    for size in blocks(permutations, len(sizes)):
        drawn = rng.permuted(np.tile(first, (size, 1)), axis=1).astype(np.float64)
        # Equal divisions must count as such, whatever the order of a matrix product's sums.
        beyond += int((mmd2(drawn) >= observed * (1.0 - 1e-6)).sum())
    return observed, (beyond + 1) / (permutations + 1)


def matched_images(
    source_groups: IntArray, target_groups: IntArray, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Return the rows of both domains that leave patients about equally many images.

    The patient of rank r among G by number of images keeps at most as many as the patient at
    fraction (r + 1/2) / G of the other domain has.
    """
    counts = [np.bincount(g) for g in (source_groups, target_groups)]
    kept = []
    for groups, own, other in (
        (source_groups, counts[0], np.sort(counts[1])),
        (target_groups, counts[1], np.sort(counts[0])),
    ):
        rank = np.empty(len(own), np.int64)
        rank[np.lexsort((rng.random(len(own)), own))] = np.arange(len(own))
        place = ((rank + 0.5) / len(own) * len(other)).astype(np.int64)
        allowed = np.minimum(own, other[place])
        # Rows in random order within each patient: the first ``allowed`` of each are kept.
        order = np.lexsort((rng.random(len(groups)), groups))
        start = np.concatenate([[0], np.cumsum(own)[:-1]])
        within = np.arange(len(groups)) - start[groups[order]]
        kept.append(np.sort(order[within < allowed[groups[order]]]).astype(np.int64))
    return kept[0], kept[1]


def untested(source_groups: IntArray, target_groups: IntArray) -> ShiftTest:
    """Return a result without p value; its note says if images or patients are too few to test.

    Args:
        source_groups: (N,) numbered from 0.
        target_groups: (M,) numbered from 0.
    """
    found = ShiftTest(
        statistic=NAN,
        p=NAN,
        resamples=0,
        source_images=len(source_groups),
        target_images=len(target_groups),
        source_patients=int(source_groups.max()) + 1,
        target_patients=int(target_groups.max()) + 1,
    )
    for number, domain, unit, least in (
        (found.source_images, "source", "images", MIN_IMAGES),
        (found.target_images, "target", "images", MIN_IMAGES),
        (found.source_patients, "source", "patients", MIN_PATIENTS),
        (found.target_patients, "target", "patients", MIN_PATIENTS),
    ):
        if number < least:
            return replace(found, note=f"the {domain} has {number} {unit}, fewer than {least}")
    return found


def blocks(total: int, width: int) -> list[int]:
    """Return how many resamples to hold at once, so that memory stays bounded."""
    size = max(1, _NUMBERS // max(width, 1))
    return [min(size, total - done) for done in range(0, total, size)]
