"""The order of a backbone's layers, from the images up: what is near the input, and what is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from timm.models import group_parameters
from torch import nn


@dataclass(frozen=True)
class Stage:
    """Neighbouring layers of a backbone.

    Args:
        name: what it holds, such as ``"layer4"`` or ``"blocks.11+norm"``.
        parameters: names of its parameters within the backbone.
    """

    name: str
    parameters: tuple[str, ...]


def backbone_stages(backbone: nn.Module, *, coarse: bool) -> tuple[Stage, ...]:
    """Split the parameters of a backbone into stages, the one next to the images first.

    timm's ``group_matcher`` says where the stages are. A backbone without one is split into its
    children in the order in which it declares them; a single child that holds everything is
    looked into. Parameters outside of any child belong to the first stage.

    Args:
        backbone: the backbone of an :class:`~daptkit.model.AdaptNet`.
        coarse: stages of several blocks where the network has them, else single blocks.

    Returns:
        At least one stage; each parameter is in exactly one.
    """
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is not None:
        found = group_parameters(backbone, matcher(coarse=coarse), reverse=False)
        groups = [tuple(found[number]) for number in sorted(found)]
    else:
        groups = list(_children(backbone, ""))
    groups = [names for names in groups if names]
    heads = Counter(head for names in groups for head in {n.split(".")[0] for n in names})
    divided = frozenset(head for head, stages in heads.items() if stages > 1)
    return tuple(Stage(_stage_name(names, divided), names) for names in groups)


def _children(module: nn.Module, prefix: str) -> Iterator[tuple[str, ...]]:
    """Yield the full parameter names of each child, in order."""
    own = [f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False)]
    parts = [
        (name, child, [f"{prefix}{name}.{key}" for key, _ in child.named_parameters()])
        for name, child in module.named_children()
    ]
    parts = [part for part in parts if part[2]]
    if len(parts) == 1 and not own and any(True for _ in parts[0][1].children()):
        yield from _children(parts[0][1], f"{prefix}{parts[0][0]}.")
        return
    for number, (_, _, names) in enumerate(parts):
        yield (*own, *names) if number == 0 else tuple(names)
    if not parts:
        yield tuple(own)


def _stage_name(parameters: tuple[str, ...], divided: frozenset[str]) -> str:
    """Join the modules of a stage; of one that several stages share, the number is kept."""
    names = []
    for parameter in parameters:
        first, *rest = parameter.split(".")
        names.append(f"{first}.{rest[0]}" if first in divided and rest else first)
    return "+".join(dict.fromkeys(names))


def modules_above(backbone: nn.Module, trained: frozenset[str]) -> frozenset[str]:
    """Return the modules of a backbone all of whose parameters are trained.

    What has no parameter of its own, such as a dropout, goes with the module around it.

    Args:
        backbone: the backbone.
        trained: names of the parameters that are trained.

    Returns:
        Names of modules within the backbone, ``""`` for the backbone itself.
    """
    whole: dict[str, bool] = {}
    for name, module in backbone.named_modules():
        inside = [f"{name}.{key}" if name else key for key, _ in module.named_parameters()]
        around = whole.get(name.rpartition(".")[0], False)
        whole[name] = trained.issuperset(inside) if inside else around
    return frozenset(name for name, trains in whole.items() if trains)
