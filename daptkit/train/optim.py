"""Optimiser, parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from daptkit.config import AdaptConfig
from daptkit.errors import PluginError
from daptkit.method import Method
from daptkit.model import AdaptNet
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

    Each group carries ``lr_scale``: ``backbone_scale`` for the backbone, 1 for bottleneck and
    head, the method's own for its parameters. :func:`set_learning_rate` applies it.

    Raises:
        PluginError: the groups of a method do not hold each of its parameters once.
    """
    backbone = [p for p in net.backbone.parameters() if p.requires_grad]
    head = [
        p for module in (net.bottleneck, net.head) for p in module.parameters() if p.requires_grad
    ]
    groups: list[dict[str, Any]] = [{"params": head, "lr_scale": 1.0, "name": "head"}]
    if backbone:
        groups.append({"params": backbone, "lr_scale": backbone_scale, "name": "backbone"})
    for name, method in methods.items():
        groups.extend(_method_groups(name, method, packages[name]))
    if config.opt == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=config.weight_decay,
        fused=True,
    )


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
