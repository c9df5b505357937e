"""AdaBN as daptkit sees it before a run; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.plugin import MethodSpec, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class AdaBNOptions:
    """Options of ``adabn``."""

    strength: float = option(
        1.0,
        "How far the target's statistics are its own: 0 for the source's, 1 for its own.",
        low=0.0,
        high=1.0,
    )
    train: bool = option(
        True, "Normalise each site by its own batches in training; false: as --bn says."
    )
    images: int = option(
        512, "Target images at most that BatchNorm's statistics are measured on.", low=2, high=10**9
    )
    scale: str = option(
        "source",
        "What features are brought to where there is no BatchNorm to adapt: source, the source's"
        " mean and deviation, so that the target alone is changed; unit, mean 0 and deviation 1 at"
        " either site.",
        choices=("source", "unit"),
    )


@hookimpl
def daptkit_methods() -> MethodSpec:
    """Offer ``adabn``."""
    return MethodSpec(
        name="adabn",
        summary="Normalise each site by its own statistics: BatchNorm's, or the features'.",
        factory="daptkit_adabn.adabn:AdaBN",
        options=AdaBNOptions,
        roles=frozenset({"features", "norm"}),
        trains="none",
        risks=frozenset({"narrow"}),
        reference="arXiv:1603.04779",
    )
