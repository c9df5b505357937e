"""Build the network from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from daptkit.errors import DaptkitError, PluginError, UsageError
from daptkit.model.config import ModelConfig, check_timm_name
from daptkit.model.network import AdaptNet, evaluating

Factories = Mapping[str, Callable[..., Any]]

BUILD_ERRORS = (
    TypeError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ZeroDivisionError,
)
"""What timm's constructors and layers raise on arguments or sizes that do not fit."""


def build_model(
    config: ModelConfig, *, pretrained: bool = False, factories: Factories | None = None
) -> AdaptNet:
    """Build the network; the caller seeds its weights through ``torch.manual_seed``.

    Args:
        config: the resolved configuration.
        pretrained: fetch the backbone's weights from timm's hub.
        factories: backbones of plugins by name, called with ``in_chans`` and the model arguments.

    Raises:
        UsageError: the model does not take the arguments or the image size.
        PluginError: a plugin's backbone fails or does not return (N, D') features.
        DaptkitError: the weights cannot be fetched.
    """
    of_plugin = factories is not None and config.name in factories
    if of_plugin:
        assert factories is not None
        backbone = _plugin_backbone(config, factories[config.name], pretrained)
    else:
        check_timm_name(config.name, factories or {})
        backbone = _timm_backbone(config, pretrained)
    net = AdaptNet(backbone, config, _trunk_dim(backbone, config, of_plugin))
    return net.to(memory_format=torch.channels_last)


def _plugin_backbone(
    config: ModelConfig, factory: Callable[..., Any], pretrained: bool
) -> nn.Module:
    if pretrained:
        raise UsageError(
            f"--pretrained fetches timm's weights, and {config.name} is a plugin's model: give "
            "--pretrained-path, or the plugin's own argument with --model-kwargs."
        )
    try:
        made = factory(in_chans=config.in_chans, **config.kwargs)
    except Exception as error:  # the plugin's own code, which may raise anything
        raise PluginError(
            f"the plugin's model {config.name} failed: {type(error).__name__}: {error}. Check "
            "--model-kwargs and --in-chans."
        ) from error
    if not isinstance(made, nn.Module):
        raise PluginError(
            f"the plugin's model {config.name} returned {type(made).__name__}, not a module."
        )
    return made


def _timm_backbone(config: ModelConfig, pretrained: bool) -> nn.Module:
    # timm.create_model would only log that there are no weights and return random ones.
    cfg = get_pretrained_cfg(config.name) if pretrained else None
    if pretrained and (cfg is None or not cfg.has_weights):
        raise UsageError(
            f"timm has no pretrained weights for {config.name}: leave --pretrained out, or give "
            "--pretrained-path."
        )
    # Built without weights first, so that a wrong argument is told from a failed download.
    with torch.random.fork_rng(devices=[], enabled=pretrained):
        backbone, takes_size = _construct(config)
    if not pretrained:
        return backbone
    try:
        return _create(config, with_size=takes_size, pretrained=True)
    except (OSError, *BUILD_ERRORS) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DaptkitError(
            f"--pretrained could not load the weights of {config.name}: {reason} Without network, "
            "give a local file with --pretrained-path."
        ) from error


def _construct(config: ModelConfig) -> tuple[nn.Module, bool]:
    """Return the backbone, and whether it takes the image size (networks with position codes)."""
    state = torch.random.get_rng_state()
    try:
        try:
            return _create(config, with_size=True), True
        except TypeError as error:
            if "img_size" not in str(error):
                raise
        torch.random.set_rng_state(state)
        return _create(config, with_size=False), False
    except BUILD_ERRORS as error:
        raise UsageError(
            f"the model {config.name} cannot be built for {config.in_chans} channels of "
            f"{config.img_size} pixels with arguments {dict(config.kwargs)}: {error}. Check "
            "--model-kwargs, --img-size and --in-chans."
        ) from error


def _create(config: ModelConfig, *, with_size: bool, pretrained: bool = False) -> nn.Module:
    size: dict[str, Any] = {"img_size": config.img_size} if with_size else {}
    made: nn.Module = timm.create_model(
        config.name,
        pretrained=pretrained,
        num_classes=0,
        in_chans=config.in_chans,
        **size,
        **config.kwargs,
    )
    return made


def _trunk_dim(backbone: nn.Module, config: ModelConfig, of_plugin: bool) -> int:
    """Measure D' on one blank image: ``num_features`` is not the pooled size of every network."""
    blank = torch.zeros(1, config.in_chans, config.img_size, config.img_size)
    fault = PluginError if of_plugin else UsageError
    try:
        with torch.no_grad(), evaluating(backbone):
            pooled = backbone(blank)
    except BUILD_ERRORS as error:
        raise fault(
            f"the model {config.name} cannot take {config.in_chans} channels of {config.img_size} "
            f"x {config.img_size} pixels: {error}. Try another --img-size."
        ) from error
    if not isinstance(pooled, torch.Tensor) or pooled.ndim != 2 or len(pooled) != 1:
        shape = tuple(pooled.shape) if isinstance(pooled, torch.Tensor) else type(pooled).__name__
        raise fault(
            f"the model {config.name} returns {shape} for one image, not pooled features (1, D)."
        )
    return int(pooled.shape[1])
