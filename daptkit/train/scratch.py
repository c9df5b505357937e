"""The same network from random weights: what the loaded weights are worth."""

from __future__ import annotations

from dataclasses import replace

import torch

from daptkit.data import Augment
from daptkit.model import build_model
from daptkit.train.augmentation import augmentation
from daptkit.train.device import derive_seed
from daptkit.train.domains import TaskData
from daptkit.train.jobs import JobMaker
from daptkit.train.network import NetworkSource
from daptkit.train.plugins import plugin_backbones

SCRATCH = "from-scratch"
"""Name of the model among the figures of a run."""


def scratch_maker(maker: JobMaker) -> JobMaker:
    """Return what makes a run's network from random weights, to be trained on the source alone.

    Options that only make sense with loaded weights are left out: all layers are trained on images
    at one rate. Where the source-only model scores no better than this one, the loaded weights have
    not helped: negative transfer (Wang et al. 2019, arXiv:1811.09751).

    Args:
        maker: of the run.
    """
    prepared = maker.prepared
    config = replace(
        maker.config,
        method="none",
        method_options={},
        pretrained=False,
        pretrained_path=None,
        init_from=None,
        finetune="full",
        trunk_views=0,
        bn="joint",
        backbone_lr_scale=None,
        layer_decay=None,
        from_scratch=False,
    )
    architecture = prepared.model_config
    torch.manual_seed(derive_seed(config.seed, 0))
    network = NetworkSource(
        template=build_model(architecture, factories=plugin_backbones()),
        config=architecture,
        classes=prepared.classes,
        conversion=prepared.network.conversion,
        weights=None,
        backbone_scale=1.0,
        package=prepared.network.package,
    )
    preset = augmentation(config, prepared.data.source.images)
    data = replace(_of_images(prepared.data), augment=None if preset == "none" else Augment(preset))
    return replace(
        maker,
        prepared=replace(prepared, network=network, data=data, augmentation=preset),
        config=config,
        methods=(),
        label=SCRATCH,
    )


def _of_images(data: TaskData) -> TaskData:
    return replace(
        data,
        source=replace(data.source, trunk=None, views=None),
        target=replace(data.target, trunk=None, views=None),
    )
