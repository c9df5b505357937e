"""Which properties of the images differ, and which methods even that out by their own word."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daptkit.shift.appearance import Difference

ORDER = ("intensity", "contrast", "colour", "shading", "sharpness", "noise", "resolution")
"""Properties as they are listed: :data:`daptkit.plugin.PROPERTIES`."""

_OF_STATISTICS = (
    ("intensity", r"intensity_.*|.*_mean"),
    ("contrast", r"contrast|.*_spread"),
    ("colour", r"saturation|.*_balance"),
    ("shading", r"low_frequencies"),
    ("sharpness", r"sharpness_.*"),
    ("noise", r"noise"),
    ("resolution", r"resolution"),
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """One property of the images of both sites.

    Args:
        name: one of :data:`daptkit.plugin.PROPERTIES`.
        differs: whether one of its statistics differs at the level asked for.
        strongest: of those that differ the statistic with the largest effect; of all, where none
            does.
        differing: names of the statistics that differ, the largest effect first.
        methods: those that say they even it out, where it differs.
    """

    name: str
    differs: bool
    strongest: Difference
    differing: tuple[str, ...]
    methods: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, NaN as ``None``."""
        strongest = self.strongest.to_json()
        shown = ("name", "source", "target", "effect", "low", "high", "p_adjusted")
        return {
            "name": self.name,
            "differs": self.differs,
            "strongest": {key: strongest[key] for key in shown},
            "differing": list(self.differing),
            "methods": list(self.methods),
        }


def compare_looks(
    differences: Sequence[Difference],
    corrects: Mapping[str, frozenset[str]] | None = None,
    *,
    alpha: float = 0.05,
) -> tuple[Look, ...]:
    """Return the properties that were measured, whether they differ, and which methods are for it.

    A property differs where one of its statistics does after Holm's correction for all of them.
    It says that images differ, not that the difference harms or that evening it out helps.

    Args:
        differences: of statistics as of :func:`daptkit.shift.image_statistics`; covariates among
            them are passed over.
        corrects: name of a method -> what it evens out, of :class:`daptkit.plugin.MethodSpec`.
        alpha: level, in (0, 1).
    """
    found = []
    for name in ORDER:
        ours = [d for d in differences if d.kind == "number" and _property(d.name) == name]
        if not ours:
            continue
        differing = [d for d in ours if d.p_adjusted <= alpha]
        found.append(
            Look(
                name=name,
                differs=bool(differing),
                strongest=max(differing or ours, key=_size),
                differing=tuple(d.name for d in differing),
                methods=tuple(sorted(m for m, what in (corrects or {}).items() if name in what))
                if differing
                else (),
            )
        )
    return tuple(found)


def _size(difference: Difference) -> float:
    return abs(difference.effect) if math.isfinite(difference.effect) else -1.0


def _property(statistic: str) -> str | None:
    """Return what a statistic of images says something of."""
    return next((p for p, names in _OF_STATISTICS if re.fullmatch(names, statistic)), None)
