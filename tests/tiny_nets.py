"""Small networks for tests of daptkit.model."""

from __future__ import annotations

from typing import Any

import torch

from daptkit.model import AdaptNet, ModelConfig, build_model, resolve_model_config

DEFAULTS: dict[str, Any] = {
    "kwargs": {},
    "img_size": 32,
    "in_chans": None,
    "mean": (),
    "std": (),
    "num_classes": 3,
    "bottleneck": 8,
    "dropout": 0.0,
}


def tiny_config(name: str = "test_resnet", **changes: Any) -> ModelConfig:
    """Resolve a model for three classes, eight features and 32 pixels."""
    return resolve_model_config(name, **{**DEFAULTS, **changes})


def tiny_net(
    name: str = "test_resnet", *, seed: int = 1, factories: Any = None, **changes: Any
) -> AdaptNet:
    """Build such a model with weights drawn from ``seed``."""
    config = tiny_config(name, factories=factories, **changes)
    torch.manual_seed(seed)
    return build_model(config, factories=factories)
