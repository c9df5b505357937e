"""Which images an embedding shows, its coordinates by PCA, and its table of points."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daptkit.run import RunFolder, atomic_write
from daptkit.train.deliver import ENOUGH_HELD_OUT
from daptkit.train.domains import Rows, TaskData

Floats = npt.NDArray[np.float64]

MAX_PER_DOMAIN = 1000
MIN_FOR_UMAP = 100
"""Points below which UMAP's neighbourhoods say little that PCA does not show."""
COLUMNS = ("model", "domain", "row", "class", "class_is", "x", "y")


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Two coordinates of every point of one or more panels.

    Args:
        panels: (N, 2) each, in the order of the features that were given.
        kind: ``"umap"`` or ``"pca"``, the same for all panels.
        why_pca: one sentence; ``None`` for UMAP.
    """

    panels: tuple[Floats, ...]
    kind: str
    why_pca: str | None


@dataclass(frozen=True, kw_only=True)
class EmbeddedPoint:
    """One image in one panel; ``class_is`` is ``"label"`` or ``"predicted"``."""

    model: str
    domain: str
    row: int
    class_name: str
    class_is: str
    x: float
    y: float


def sample_rows(rows: Rows, limit: int, seed: int) -> Rows:
    """Return at most ``limit`` of ``rows``, drawn without replacement by the seed, sorted."""
    if len(rows) <= limit:
        return np.sort(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))


def points_shown(data: TaskData) -> int:
    """Return how many points a panel of these data will have, before anything is trained."""
    n_source = len(data.val_rows)
    if n_source < ENOUGH_HELD_OUT:
        n_source += len(data.train_rows)
    return min(n_source, MAX_PER_DOMAIN) + min(len(data.target_rows), MAX_PER_DOMAIN)


def why_not_umap(panels: Iterable[Floats]) -> str | None:
    """Return one sentence on why UMAP is not tried on these features (N, D), or ``None``."""
    for features in panels:
        if len(features) < MIN_FOR_UMAP:
            return f"{len(features)} images are shown, and UMAP needs {MIN_FOR_UMAP}."
        if not np.isfinite(features).all():
            return "Some features are not finite numbers."
        if not features.std(axis=0).any():
            return "The features of all images are alike."
    return None


def by_pca(panels: Iterable[Floats], why: str) -> Projection:
    """Project every panel of features (N, D) on its two directions of largest variance.

    Args:
        panels: features; values that are not finite count as 0.
        why: one sentence on why it is not UMAP.
    """
    return Projection(panels=tuple(_pca(panel) for panel in panels), kind="pca", why_pca=why)


def _pca(features: Floats) -> Floats:
    finite = np.nan_to_num(features, nan=0.0, posinf=0.0, neginf=0.0)
    centred = finite - finite.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2]
    # An axis has no sign of its own; this one makes the same data give the same plot.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    coordinates = np.zeros((len(features), 2))
    coordinates[:, : len(axes)] = centred @ (axes * np.where(largest < 0, -1.0, 1.0)).T
    return coordinates


def write_points(folder: RunFolder, points: Iterable[EmbeddedPoint]) -> None:
    """Write ``embedding.csv``: one row per image and panel, images by row number only.

    Raises:
        DaptkitError: the file cannot be written.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in points:
        where = (point.model, point.domain, point.row, point.class_name, point.class_is)
        writer.writerow([*where, f"{point.x:.6g}", f"{point.y:.6g}"])
    atomic_write(folder.embedding, out.getvalue())
