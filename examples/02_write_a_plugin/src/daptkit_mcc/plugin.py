"""MCC as daptkit sees it before a run; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.plugin import MethodSpec, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class MCCOptions:
    """Options of ``mcc``."""

    weight: float = option(1.0, "Weight of the class confusion.", low=0.0)
    temperature: float = option(2.5, "Softens the probabilities.", low=0.1, high=100.0)


@hookimpl
def daptkit_methods() -> MethodSpec:
    """Offer ``mcc``."""
    return MethodSpec(
        name="mcc",
        summary="Predict the target's images with little confusion between classes.",
        factory="daptkit_mcc.mcc:MCC",
        options=MCCOptions,
        reference="arXiv:1912.03699",
    )
