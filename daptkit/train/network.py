"""The model of a run with its initial weights, made anew for twin and adapted model alike."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from daptkit.config import AdaptConfig
from daptkit.data import Conversion
from daptkit.errors import DataError, UsageError
from daptkit.model import (
    AdaptNet,
    LoadedModel,
    ModelConfig,
    StoredAlignment,
    WeightsReport,
    build_model,
    init_from,
    load_backbone_weights,
    load_model_folder,
    model_folder,
    resolve_model_config,
)
from daptkit.train.device import derive_seed
from daptkit.train.plugins import model_package, plugin_backbones
from daptkit.train.strategy import apply_strategy


@dataclass(frozen=True, kw_only=True)
class NetworkSource:
    """A model with its initial weights, to be copied.

    Args:
        template: the model on the CPU; never trained itself.
        config: its architecture.
        classes: class names, in the order of the logits.
        conversion: stored conversion of ``--init-from``'s model folder, if it has one.
        weights: which weights were loaded, or ``None``.
        backbone_scale: backbone's learning rate over the head's.
        package: package and version of the plugin that the backbone is of, if it is a plugin's.
        alignments: what methods do at prediction of the model of ``--init-from``; of no use here,
            since they are of the target that it was trained for.
    """

    template: AdaptNet
    config: ModelConfig
    classes: tuple[str, ...]
    conversion: Conversion | None
    weights: WeightsReport | None
    backbone_scale: float
    package: str | None = None
    alignments: tuple[StoredAlignment, ...] = ()

    def make(self, device: torch.device) -> AdaptNet:
        """Return a fresh copy on a device."""
        return copy.deepcopy(self.template).to(device)


def network_source(config: AdaptConfig, classes: tuple[str, ...]) -> NetworkSource:
    """Build the model that the options name and load its weights.

    Args:
        config: options.
        classes: classes of the source labels.

    Raises:
        UsageError: options exclude each other, or a frozen trunk has no weights.
        DataError: weights cannot be used.
    """
    given = [
        flag
        for flag, on in (
            ("--pretrained", config.pretrained),
            ("--pretrained-path", config.pretrained_path),
            ("--init-from", config.init_from),
        )
        if on
    ]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other; name one source of weights.")
    torch.manual_seed(derive_seed(config.seed, 0))
    weights: WeightsReport | None = None
    stored: LoadedModel | None = None
    if config.init_from:
        net, model_config, owned, weights = init_from(
            config.init_from,
            classes=_class_list(config.classes),
            name=config.model,
            kwargs=config.model_kwargs,
            img_size=config.img_size,
            in_chans=config.in_chans,
            mean=config.mean,
            std=config.std,
            dropout=config.dropout,
            factories=plugin_backbones(),
            trust=config.trust,
        )
        _check_classes(owned, classes)
        classes, stored = owned, _stored_model(config.init_from)
    else:
        model_config = resolve_model_config(
            config.model,
            config.model_kwargs,
            img_size=config.img_size,
            in_chans=config.in_chans,
            mean=config.mean,
            std=config.std,
            num_classes=len(classes),
            bottleneck=config.bottleneck,
            dropout=config.dropout,
            factories=plugin_backbones(),
        )
        net = build_model(model_config, pretrained=config.pretrained, factories=plugin_backbones())
        if config.pretrained_path:
            weights = load_backbone_weights(net, config.pretrained_path, trust=config.trust)
    loaded = bool(given)
    apply_strategy(net, config, loaded=loaded)
    scale = config.backbone_lr_scale
    return NetworkSource(
        template=net,
        config=model_config,
        classes=classes,
        conversion=None if stored is None else Conversion.from_json(stored.conversion),
        weights=weights,
        backbone_scale=(0.1 if loaded else 1.0) if scale is None else scale,
        package=model_package(model_config.name),
        alignments=() if stored is None else stored.alignments,
    )


def _class_list(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(","))


def _check_classes(owned: tuple[str, ...], source: tuple[str, ...]) -> None:
    unknown = [name for name in source if name not in owned]
    if unknown:
        raise DataError(
            f"the source has classes that the model of --init-from does not know:"
            f" {', '.join(unknown)}; it knows {', '.join(owned)}."
        )


def _stored_model(path: str) -> LoadedModel | None:
    """Return the model folder, if it is one, whose images were converted as ours shall be."""
    folder = model_folder(Path(path))
    return None if folder is None else load_model_folder(folder, factories=plugin_backbones())
