"""CORAL as daptkit sees it before a run; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.plugin import MethodSpec, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class CORALOptions:
    """Options of ``coral``."""

    weight: float = option(100.0, "Weight of the distance of covariances.", low=0.0)
    mean_weight: float = option(
        1.0, "Weight of the distance of means; 0 is CORAL as published.", low=0.0
    )
    ramp: bool = option(True, "Grow both weights from 0 by 2/(1+exp(-10p))-1 over the run.")


@hookimpl
def daptkit_methods() -> MethodSpec:
    """Offer ``coral``."""
    return MethodSpec(
        name="coral",
        summary="Match means and covariances of both sites' features.",
        factory="daptkit_coral.coral:CORAL",
        options=CORALOptions,
        reference="arXiv:1607.01719",
    )
