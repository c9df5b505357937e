"""Optimiser, parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from daptkit.config import AdaptConfig
from daptkit.errors import PluginError
from daptkit.method import Method
from daptkit.model import AdaptNet, backbone_stages
from daptkit.train.guard import plugin_guard


def schedule_factor(name: str, progress: float) -> float:
    """Return the factor on every learning rate at ``progress`` in [0, 1].

    ``inverse`` is (1 + 10 p)^-0.75 (Ganin et al. 2016, arXiv:1505.07818); ``cosine`` is
    (1 + cos(pi p)) / 2 (Loshchilov and Hutter 2017, arXiv:1608.03983).
    """
    if name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return float((1.0 + 10.0 * progress) ** -0.75)


def build_optimizer(
    net: AdaptNet,
    methods: Mapping[str, Method],
    packages: Mapping[str, str],
    config: AdaptConfig,
    backbone_scale: float,
) -> torch.optim.Optimizer:
    """Build the one optimiser of model and methods.

    Each group carries ``lr_scale``: 1 for bottleneck and head, the method's own for its parameters,
    and for the backbone what :func:`backbone_groups` says. :func:`set_learning_rate` applies it.

    Raises:
        PluginError: the groups of a method do not hold each of its parameters once.
    """
    head = [
        p for module in (net.bottleneck, net.head) for p in module.parameters() if p.requires_grad
    ]
    groups: list[dict[str, Any]] = [{"params": head, "lr_scale": 1.0, "name": "head"}]
    # Stages that are unfrozen later have their place from the start: nothing is rebuilt then, so
    # no momentum is lost, and the optimiser passes over what has no gradient.
    later = config.finetune == "gradual"
    groups.extend(backbone_groups(net, backbone_scale, config.layer_decay, frozen_too=later))
    for name, method in methods.items():
        groups.extend(_method_groups(name, method, packages[name]))
    if config.opt == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=config.weight_decay,
        fused=True,
    )
    # The fused form makes the buffers of a group all at once, from memory as it is: it fails at a
    # parameter that is unfrozen later, and keeps that memory where a first step is skipped.
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def backbone_groups(
    net: AdaptNet, scale: float, layer_decay: float | None, *, frozen_too: bool = False
) -> list[dict[str, Any]]:
    """Return the optimiser's groups of the backbone's trained parameters.

    With a layer decay d, layer l of L, counted from the images, moves at scale * d^(L - l)
    (discriminative rates: Howard and Ruder 2018, arXiv:1801.06146). The topmost layer keeps
    ``scale``, which stands between it and the head. Without, the backbone is one group.

    Args:
        net: the model.
        scale: the backbone's rate over the head's.
        layer_decay: d in (0, 1], or ``None``.
        frozen_too: also of those that are not trained yet.
    """
    if layer_decay is None:
        layers, decay = [("backbone", list(net.backbone.parameters()))], 1.0
    else:
        known = dict(net.backbone.named_parameters())
        stages = backbone_stages(net.backbone, coarse=False)
        layers = [
            (f"backbone layer {i}: {stage.name}", [known[name] for name in stage.parameters])
            for i, stage in enumerate(stages)
        ]
        decay = layer_decay
    groups = []
    for height, (name, parameters) in enumerate(reversed(layers)):
        trained = [p for p in parameters if p.requires_grad or frozen_too]
        if trained:
            groups.append({"params": trained, "lr_scale": scale * decay**height, "name": name})
    return groups


def _method_groups(name: str, method: Method, package: str) -> list[dict[str, Any]]:
    with plugin_guard(name, package, "param_groups()"):
        groups: list[dict[str, Any]] = [
            {
                "params": list(group["params"]),
                "lr_scale": float(group.get("lr_scale", 1.0)),
                "name": name,
            }
            for group in method.param_groups()
        ]
    left = {id(p): key for key, p in method.named_parameters() if p.requires_grad}
    for parameter in (p for group in groups for p in group["params"]):
        if left.pop(id(parameter), None) is None:
            raise PluginError(
                f"method '{name}' ({package}) returned an optimiser group with a parameter that is"
                " not its own to train, or is there twice."
            )
    if left:
        raise PluginError(
            f"method '{name}' ({package}) left parameters out of param_groups():"
            f" {', '.join(sorted(left.values()))}."
        )
    return groups


def set_learning_rate(optimizer: torch.optim.Optimizer, base: float, factor: float) -> None:
    """Set every group to ``base * factor * lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = base * factor * group["lr_scale"]
