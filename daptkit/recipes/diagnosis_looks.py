"""What a diagnosis says of how the images look: properties, methods for them, power spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from daptkit.data import to_float
from daptkit.host import PluginStatus
from daptkit.recipes.diagnosis_inputs import Site, Sites
from daptkit.report.embedding import sample_rows
from daptkit.shift import ShiftDiagnosis, compare_looks, radial_spectrum

MAX_SPECTRA = 256
"""Images of a site whose power spectra are averaged."""


def looks(
    sites: Sites, diagnosis: ShiftDiagnosis, methods: Sequence[PluginStatus]
) -> dict[str, Any]:
    """Return the properties of the images with the methods for them, and both sites' spectra.

    Args:
        sites: both sites' images.
        diagnosis: of them, with the differences of their statistics.
        methods: installed methods.
    """
    found = compare_looks(
        diagnosis.appearance,
        {m.name: frozenset(m.corrects) for m in methods},
        alpha=diagnosis.alpha,
    )
    return {
        "properties": [look.to_json() for look in found],
        "spectrum": _spectra(sites),
    }


def to_recommend(
    methods: Sequence[PluginStatus], properties: Sequence[Mapping[str, Any]]
) -> list[PluginStatus]:
    """Return the methods without those that even out properties of images of which none differs.

    Args:
        methods: installed methods.
        properties: as of :func:`looks`.
    """
    useful = {method for look in properties for method in look["methods"]}
    return [m for m in methods if not m.corrects or m.name in useful]


def _spectra(sites: Sites) -> dict[str, Any]:
    seed = sites.config.seed
    frequency, source = _spectrum(sites.source, seed)
    _, target = _spectrum(sites.target, seed)
    return {"frequency": frequency, "source": source, "target": target}


def _spectrum(site: Site, seed: int) -> tuple[list[float], dict[str, list[float]]]:
    """Return frequencies, and mean and standard deviation over images of log10 of power there."""
    rows = site.rows[sample_rows(site.tested, MAX_SPECTRA, seed)]
    parts = [
        radial_spectrum(to_float(site.domain.images.batch(chunk)).numpy())
        for chunk in np.array_split(rows, -(-len(rows) // 64))
    ]
    levels = np.concatenate([power for _, power in parts])
    return parts[0][0].tolist(), {
        "mean": levels.mean(axis=0).tolist(),
        "std": levels.std(axis=0).tolist(),
    }
