"""MMD and joint MMD as daptkit sees them before a run; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.errors import UsageError
from daptkit.plugin import MethodSpec, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class MMDOptions:
    """Options of ``mmd``."""

    # The loss sums five kernels by default: 1/5 makes them the convex combination of the paper.
    # At 1, alignment collapses the features of a network that is trained from scratch before its
    # classifier has learnt anything.
    weight: float = option(0.2, "Weight of the squared discrepancy.", low=0.0)
    k_min: int = option(
        -3, "Narrowest kernel: bandwidth 2^k_min x mean squared distance.", low=-20, high=20
    )
    k_max: int = option(
        1, "Widest kernel: bandwidth 2^k_max x mean squared distance.", low=-20, high=20
    )
    ramp: bool = option(True, "Grow the weight from 0 by 2/(1+exp(-10p))-1 over the run.")

    def __post_init__(self) -> None:
        if self.k_min > self.k_max:
            raise UsageError(
                f"option 'k_min' ({self.k_min}) must not exceed option 'k_max' ({self.k_max})."
            )


@dataclass(frozen=True, kw_only=True)
class JMMDOptions(MMDOptions):
    """Options of ``jmmd``."""

    class_bandwidth: float = option(
        1.68,
        "Denominator of the kernel exp(-d/x) on class probabilities.",
        low=1e-3,
        high=1e3,
    )


@hookimpl
def daptkit_methods() -> tuple[MethodSpec, ...]:
    """Offer ``mmd`` and ``jmmd``."""
    return (
        MethodSpec(
            name="mmd",
            summary="Match both sites' feature distributions under several Gaussian kernels.",
            factory="daptkit_mmd.mmd:MMD",
            options=MMDOptions,
            reference="arXiv:1502.02791",
        ),
        MethodSpec(
            name="jmmd",
            summary="Match the joint distribution of features and class predictions.",
            factory="daptkit_mmd.jmmd:JMMD",
            options=JMMDOptions,
            reference="arXiv:1605.06636",
            risks=frozenset({"own_predictions"}),
        ),
    )
