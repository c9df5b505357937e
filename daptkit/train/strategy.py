"""What of a network is trained, and whether the options that say so fit it."""

from __future__ import annotations

from daptkit.config import AdaptConfig
from daptkit.errors import UsageError
from daptkit.model import AdaptNet, backbone_stages


def apply_strategy(net: AdaptNet, config: AdaptConfig, *, loaded: bool) -> None:
    """Freeze what the options leave untrained.

    Args:
        net: the model with its initial weights.
        config: options.
        loaded: whether the backbone has trained weights.

    Raises:
        UsageError: the options do not fit each other or the network.
    """
    if config.finetune != "full":
        if not loaded:
            raise UsageError(
                f"--finetune {config.finetune} needs a trained trunk: give --pretrained-path,"
                " --pretrained or --init-from, or use --finetune full."
            )
        net.freeze_backbone()
    if config.layer_decay is not None:
        _check_layer_decay(net, config)
    if config.bn != "joint":
        _check_batchnorm(net, config, loaded)
    if config.from_scratch and not loaded:
        raise UsageError(
            "--from-scratch: the run starts from random weights itself, so the source-only model"
            " is that baseline; leave the option out, or give --pretrained-path, --pretrained or"
            " --init-from."
        )
    if config.bn == "frozen":
        net.freeze_batchnorm()


def _check_batchnorm(net: AdaptNet, config: AdaptConfig, loaded: bool) -> None:
    if not net.batchnorm():
        raise UsageError(
            f"--bn {config.bn}: {net.config.name} has no BatchNorm; leave the option out."
        )
    if config.finetune == "frozen":
        raise UsageError(
            f"--bn {config.bn}: --finetune frozen does not run the backbone in training; leave one"
            " of them out."
        )
    if config.bn == "frozen" and not loaded:
        raise UsageError(
            "--bn frozen keeps loaded statistics, and there are none: give --pretrained-path,"
            " --pretrained or --init-from, or use --bn joint."
        )


def _check_layer_decay(net: AdaptNet, config: AdaptConfig) -> None:
    if config.finetune == "frozen":
        raise UsageError(
            "--layer-decay sets the rates of the backbone, which --finetune frozen does not train;"
            " leave one of them out."
        )
    if len(backbone_stages(net.backbone, coarse=False)) < 2:
        raise UsageError(
            f"--layer-decay: {net.config.name} does not say how its layers follow each other (it"
            " has no group_matcher and no children of its own); use --backbone-lr-scale."
        )
