"""DANN and CDAN as daptkit sees them before a run; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.plugin import MethodSpec, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class DANNOptions:
    """Options of ``dann``."""

    weight: float = option(
        1.0, "Largest factor of the reversed gradient; the discriminator's own stays 1.", low=0.0
    )
    gamma: float = option(
        10.0, "Steepness of the ramp 2/(1+exp(-gamma p))-1 over the run.", low=0.1, high=1000.0
    )
    delay: float = option(
        0.0,
        "Part of the run before the ramp, for networks that first have to learn the task.",
        low=0.0,
        high=0.95,
    )
    hidden: int = option(1024, "Width of the discriminator's two layers.", low=1, high=65536)
    dropout: float = option(0.0, "Dropout of the discriminator.", low=0.0, high=0.95)
    lr_scale: float = option(1.0, "Learning rate of the discriminator over the head's.", low=0.0)


@dataclass(frozen=True, kw_only=True)
class CDANOptions(DANNOptions):
    """Options of ``cdan``."""

    entropy: bool = option(True, "Count confident images more, by 1+exp(-entropy) (CDAN+E).")
    random_dim: int = option(
        1024, "Size of the random map that replaces large outer products.", low=1, high=65536
    )
    outer_limit: int = option(
        4096, "Largest features x classes that the full outer product is used for.", low=0
    )


@hookimpl
def daptkit_methods() -> tuple[MethodSpec, ...]:
    """Offer ``dann`` and ``cdan``."""
    return (
        MethodSpec(
            name="dann",
            summary="Make features of both sites indistinguishable to a discriminator.",
            factory="daptkit_dann.dann:DANN",
            options=DANNOptions,
            reference="arXiv:1505.07818",
            risks=frozenset({"adversarial"}),
        ),
        MethodSpec(
            name="cdan",
            summary="DANN on features and predicted class together, confident images first.",
            factory="daptkit_dann.cdan:CDAN",
            options=CDANOptions,
            reference="arXiv:1705.10667",
            risks=frozenset({"adversarial", "own_predictions"}),
        ),
    )
