"""Specification and options of label-shift correction; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.plugin import MethodSpec, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class BBSEOptions:
    """Options of label-shift correction."""

    estimator: str = option(
        "em",
        "Estimator of the target prior.",
        choices=("em", "bbse", "bbse-hard", "rlls"),
    )
    weights: bool = option(True, "Weight source images by target over source prior in training.")
    prior: bool = option(True, "Correct the prior at prediction.")
    warmup: float = option(
        0.2,
        "Fraction of the run before the adapted model's own estimates move the weights.",
        low=0.0,
        high=1.0,
    )
    ema: float = option(
        0.5, "Share of the previous weights kept at each epoch's update.", low=0.0, high=0.99
    )
    max_weight: float = option(10.0, "Largest class weight.", low=1.0, high=1000.0)
    shrink: float = option(0.1, "Shrinkage of the weights towards 1.", low=0.0, high=1.0)
    bootstrap: int = option(
        200, "Replicates of the prior's interval at the end; 0 for none.", low=0, high=10000
    )
    abstain: bool = option(True, "Leave weights and prior alone if the estimate is not trusted.")


@hookimpl
def daptkit_methods() -> MethodSpec:
    """Return the specification of ``bbse``."""
    return MethodSpec(
        name="bbse",
        summary="Label shift: target prior by EM, BBSE or RLLS; weights and prior correction.",
        factory="daptkit_bbse.method:BBSE",
        options=BBSEOptions,
        roles=frozenset({"class_weights", "target_prior"}),
        addresses=frozenset({"label"}),
        trains="none",
        reference="arXiv:1802.03916",
    )
