"""How bright the images of both sites are, before and after a method changes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.data import to_float
from daptkit.report.embedding import sample_rows
from daptkit.train.adaptation import Trained
from daptkit.train.domains import Domain, Rows, TaskData

BINS = 64
MAX_PER_DOMAIN = 256
_CHUNK = 32
_COLOURS = ("red", "green", "blue")

Levels = npt.NDArray[np.int64]
"""Values of images by channel and bin, (C, BINS)."""


def image_levels(trained: Trained) -> dict[str, Any] | None:
    """Return the histograms of levels of each channel, of the images that the models see.

    Of each site the same images are taken before and after, at most 256, drawn by the run's seed
    from those trained on and those adapted to. No image is among what is returned.

    Returns:
        ``None`` where no method changes images; else ``{"method", "shown", "channels", "shares",
        "mean", "spread", "distance"}``. ``shares`` has (C, 64) by view: ``source``, ``target`` as
        they are, ``target_after``, and ``source_after`` where the method changes the source too.
        ``distance`` is the 1-Wasserstein distance of a channel's levels from those of the source as
        the adapted model sees it, for ``before`` and ``after``.
    """
    changed = trained.record.get("images")
    if changed is None or trained.adapted is None:
        return None
    raw, seen = trained.prepared.data, trained.adapted.fit.passes.data
    rows = {
        name: sample_rows(chosen, MAX_PER_DOMAIN, trained.config.seed)
        for name, chosen in (("source", raw.train_rows), ("target", raw.target_rows))
    }
    counts = _views(raw, seen, rows)
    channels = _named(counts)
    kept = {view: levels[: len(channels)] for view, levels in counts.items()}
    shares = {view: levels / levels.sum(axis=1, keepdims=True) for view, levels in kept.items()}
    moments = {view: _moments(part) for view, part in shares.items()}
    source = shares.get("source_after", shares["source"])
    return {
        "method": changed["method"],
        "shown": {name: len(chosen) for name, chosen in rows.items()},
        "channels": list(channels),
        "shares": {view: part.round(6).tolist() for view, part in shares.items()},
        "mean": {view: mean.tolist() for view, (mean, _) in moments.items()},
        "spread": {view: spread.tolist() for view, (_, spread) in moments.items()},
        "distance": {
            "before": _distance(shares["source"], shares["target"]).tolist(),
            "after": _distance(source, shares["target_after"]).tolist(),
        },
    }


def _views(raw: TaskData, seen: TaskData, rows: Mapping[str, Rows]) -> dict[str, Levels]:
    """Return the levels by view."""
    counts = {
        "source": _levels(raw.source, rows["source"]),
        "target": _levels(raw.target, rows["target"]),
        "target_after": _levels(seen.target, rows["target"]),
    }
    if seen.source.images is not raw.source.images:
        counts["source_after"] = _levels(seen.source, rows["source"])
    return counts


def _levels(domain: Domain, rows: Rows) -> Levels:
    """Count the values of images by channel; a bin holds four levels of 8 bit."""
    parts = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    total: Levels = np.zeros((domain.images.conversion.in_chans, BINS), np.int64)
    for images in domain.images.prefetch(parts):
        # A level of 8 bit is k / 255: half a level up, so that none is at the edge of a bin.
        bins = (to_float(images).double() * 255 + 0.5).floor().clamp(0, 255).long() * BINS // 256
        for channel in range(len(total)):
            total[channel] += np.bincount(bins[:, channel].flatten().numpy(), minlength=BINS)
    return total


def _named(counts: Mapping[str, Levels]) -> tuple[str, ...]:
    """Name the channels; those of grey images that were made into several are one."""
    number = len(counts["source"])
    if all((levels == levels[0]).all() for levels in counts.values()):
        return ("grey",)
    return _COLOURS if number == 3 else tuple(f"channel {k + 1}" for k in range(number))


def _moments(
    shares: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and standard deviation of each channel, (C,), as the bins tell them."""
    middles = (np.arange(BINS) + 0.5) / BINS
    mean = shares @ middles
    return mean, np.sqrt(np.maximum(shares @ middles**2 - mean**2, 0.0))


def _distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the 1-Wasserstein distance of levels in [0, 1] for each channel, (C,)."""
    found: npt.NDArray[np.float64] = np.abs(np.cumsum(a - b, axis=1)).sum(axis=1) / BINS
    return found
