"""The methods of appearance as daptkit sees them before a run; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from daptkit.plugin import MethodSpec, hookimpl, option

_STRENGTH = "Part of the way from the image to the matched one; 0 changes nothing."


@dataclass(frozen=True, kw_only=True)
class HistMatchOptions:
    """Options of ``histmatch``."""

    strength: float = option(1.0, _STRENGTH, low=0.0, high=1.0)
    quantiles: int = option(256, "Quantiles that are matched.", low=8, high=4096)
    foreground: bool = option(
        True, "Leave padding, collimation and saturated pixels out of the site's quantiles."
    )


@dataclass(frozen=True, kw_only=True)
class ColourOptions:
    """Options of ``colour``."""

    strength: float = option(1.0, _STRENGTH, low=0.0, high=1.0)
    kind: str = option(
        "mean_std",
        "mean_std matches mean and spread of each channel, covariance also their correlations,"
        " macenko the stains.",
        choices=("mean_std", "covariance", "macenko"),
    )
    space: str = option(
        "lab",
        "Colour space of mean_std and covariance; density is the optical one, in which stains and"
        " lamps add up. macenko is always in it.",
        choices=("lab", "ycbcr", "rgb", "density"),
    )
    foreground: bool = option(True, "Leave padding and collimation out of the site's statistics.")


@dataclass(frozen=True, kw_only=True)
class FDAOptions:
    """Options of ``fda``."""

    strength: float = option(1.0, _STRENGTH, low=0.0, high=1.0)
    band: float = option(
        0.01,
        "Frequencies matched: up to floor(band x shorter side) cycles per image.",
        low=0.0,
        high=0.25,
    )
    mode: str = option(
        "ratio",
        "ratio multiplies amplitudes by source mean / target mean, swap puts the source's mean in"
        " their place.",
        choices=("ratio", "swap"),
    )


def _spec(**values: Any) -> MethodSpec:
    return MethodSpec(
        needs=frozenset({"source", "target"}),
        roles=frozenset({"inputs"}),
        addresses=frozenset({"covariate"}),
        risks=frozenset({"narrow"}),
        trains="none",
        **values,
    )


@hookimpl
def daptkit_methods() -> tuple[MethodSpec, ...]:
    """Offer ``histmatch``, ``colour`` and ``fda``."""
    return (
        _spec(
            name="histmatch",
            summary="Give target images the grey levels of the source, by quantiles of the sites.",
            factory="daptkit_appearance.histmatch:HistMatch",
            options=HistMatchOptions,
            corrects=frozenset({"intensity", "contrast", "colour"}),
            reference="doi:10.1109/42.836373",
        ),
        _spec(
            name="colour",
            summary="Give target images the colours or the stains of the source.",
            factory="daptkit_appearance.colour:Colour",
            options=ColourOptions,
            corrects=frozenset({"intensity", "contrast", "colour"}),
            reference="doi:10.1109/38.946629",
        ),
        _spec(
            name="fda",
            summary="Give target images the low-frequency amplitudes of the source.",
            factory="daptkit_appearance.fda:FDA",
            options=FDAOptions,
            corrects=frozenset({"intensity", "shading"}),
            reference="arXiv:2004.05498",
        ),
    )
