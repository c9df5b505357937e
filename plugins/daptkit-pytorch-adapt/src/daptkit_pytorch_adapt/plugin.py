"""The methods and scores as daptkit sees them before a run; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.plugin import MethodSpec, ScoreSpec, hookimpl, option

RAMP = "Grow the weight from 0 by 2/(1+exp(-10p))-1 over the run."
PRIOR = "Use the target's class frequencies that another method of the run estimates."
# Listed for a kind of shift, a method may be recommended for it; these were not measured to help.
UNPROVEN: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class MCCOptions:
    """Options of ``mcc``."""

    weight: float = option(1.0, "Weight of the class confusion.", low=0.0)
    temperature: float = option(2.5, "Logits are divided by it first.", low=0.01)
    prior: bool = option(True, PRIOR)
    ramp: bool = option(False, RAMP)


@dataclass(frozen=True, kw_only=True)
class BNMOptions:
    """Options of ``bnm``."""

    weight: float = option(1.0, "Weight of the nuclear norm.", low=0.0)
    prior: bool = option(True, PRIOR)
    ramp: bool = option(False, RAMP)


@dataclass(frozen=True, kw_only=True)
class InfomaxOptions:
    """Options of ``infomax``."""

    weight: float = option(0.1, "Weight of both terms.", low=0.0)
    diversity: float = option(1.0, "Weight of diverse predictions beside sure ones.", low=0.0)
    prior: bool = option(True, PRIOR)
    ramp: bool = option(True, RAMP)


@dataclass(frozen=True, kw_only=True)
class AFNOptions:
    """Options of ``afn``."""

    weight: float = option(0.05, "Weight of the growth of each domain's features.", low=0.0)
    step: float = option(1.0, "By how much norms should grow at a step.", low=0.0)


@dataclass(frozen=True, kw_only=True)
class BSPOptions:
    """Options of ``bsp``."""

    weight: float = option(1e-4, "Weight of each domain's squared singular values.", low=0.0)
    k: int = option(1, "Number of largest singular values that are penalised.", low=1)
    ramp: bool = option(False, RAMP)


@dataclass(frozen=True, kw_only=True)
class VATOptions:
    """Options of ``vat``."""

    weight: float = option(1.0, "Weight of the change of predictions.", low=0.0)
    epsilon: float = option(
        0.1, "Size of the change of the inputs, relative to each one's root mean square.", low=0.0
    )
    iterations: int = option(1, "Steps of the search for the worst direction.", low=1, high=20)
    ramp: bool = option(True, RAMP)


@dataclass(frozen=True, kw_only=True)
class MCDOptions:
    """Options of ``mcd``."""

    weight: float = option(1.0, "Weight of the discrepancy for the features.", low=0.0)
    hidden: int = option(256, "Width of the two heads.", low=1, high=65536)
    distance: str = option("l1", "Discrepancy of the heads' predictions.", choices=("l1", "sliced"))
    projections: int = option(128, "Random directions of the sliced distance.", low=1, high=65536)
    lr_scale: float = option(1.0, "Learning rate of the heads over the model's head.", low=0.0)
    ramp: bool = option(True, RAMP)


@hookimpl
def daptkit_methods() -> list[MethodSpec]:
    """Offer the methods."""
    return [
        MethodSpec(
            name="mcc",
            summary="Keep the classifier from confusing classes on the target.",
            factory="daptkit_pytorch_adapt.mcc:MCC",
            options=MCCOptions,
            raises_confidence=True,
            risks=frozenset({"own_predictions"}),
            reference="arXiv:1912.03699",
        ),
        MethodSpec(
            name="bnm",
            summary="Make predictions on the target sure and diverse by their nuclear norm.",
            factory="daptkit_pytorch_adapt.bnm:BNM",
            options=BNMOptions,
            addresses=UNPROVEN,
            raises_confidence=True,
            risks=frozenset({"own_predictions"}),
            reference="arXiv:2003.12237",
        ),
        MethodSpec(
            name="infomax",
            summary="Make predictions on the target sure one by one and diverse together.",
            factory="daptkit_pytorch_adapt.infomax:Infomax",
            options=InfomaxOptions,
            addresses=UNPROVEN,
            raises_confidence=True,
            risks=frozenset({"own_predictions"}),
            reference="arXiv:2002.08546",
        ),
        MethodSpec(
            name="afn",
            summary="Let the features of both sites grow longer step by step.",
            factory="daptkit_pytorch_adapt.afn:AFN",
            options=AFNOptions,
            addresses=UNPROVEN,
            reference="arXiv:1811.07456",
        ),
        MethodSpec(
            name="bsp",
            summary="Penalise the strongest directions of the features, beside an alignment.",
            factory="daptkit_pytorch_adapt.bsp:BSP",
            options=BSPOptions,
            addresses=UNPROVEN,
            reference="proceedings.mlr.press/v97/chen19i.html",
        ),
        MethodSpec(
            name="vat",
            summary="Make predictions on the target the same for images that hardly differ.",
            factory="daptkit_pytorch_adapt.vat:VAT",
            options=VATOptions,
            addresses=UNPROVEN,
            risks=frozenset({"own_predictions"}),
            reference="arXiv:1704.03976",
        ),
        MethodSpec(
            name="mcd",
            summary="Move target features to where two classifiers of the source agree.",
            factory="daptkit_pytorch_adapt.mcd:MCD",
            options=MCDOptions,
            addresses=UNPROVEN,
            risks=frozenset({"adversarial"}),
            reference="arXiv:1712.02560",
        ),
    ]


@hookimpl
def daptkit_scores() -> list[ScoreSpec]:
    """Offer the scores."""
    return [
        ScoreSpec(
            name="pta_mmd",
            factory="daptkit_pytorch_adapt.scores:mmd",
            summary="Minus the MMD of the two sites' features.",
        ),
        ScoreSpec(
            name="pta_ist",
            factory="daptkit_pytorch_adapt.scores:domain_information",
            higher_is_better=False,
            summary="What near images tell of an image's site.",
        ),
        ScoreSpec(
            name="pta_clusters",
            factory="daptkit_pytorch_adapt.scores:class_clusters",
            summary="Agreement of target clusters with predicted classes.",
        ),
        ScoreSpec(
            name="pta_nearest",
            factory="daptkit_pytorch_adapt.scores:nearest_source",
            summary="How often the source image with the most similar prediction is right.",
        ),
        ScoreSpec(
            name="pta_silhouette",
            factory="daptkit_pytorch_adapt.scores:silhouette",
            summary="How well the target's predicted classes are apart.",
        ),
    ]
