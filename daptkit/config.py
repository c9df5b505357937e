"""The resolved configuration of ``daptkit adapt``: one frozen dataclass, also the command's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from daptkit.plugin import option

AUGMENTATIONS = ("auto", "none", "digits", "xray", "microscopy", "photo")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Everything that decides a run. Field ``img_size`` is option ``--img-size``, and so on."""

    source: tuple[str, ...] = option(
        (), "Labelled images of the source site; may be repeated.", metavar="PATH"
    )
    target: str = option("", "Unlabelled images of the target site.", metavar="PATH")
    method: str = option(
        "none",
        "Adaptation methods joined by '+', or none for source-only.",
        flags=("-m",),
        metavar="NAME[+NAME]",
    )
    out: str = option("", "Run folder to write.", metavar="DIR")
    source_split: str | None = option(None, "Split trained on (train where it exists, else all).")
    target_split: str | None = option(None, "Split adapted to (train where it exists, else all).")
    val_fraction: float = option(
        0.2, "Part of the source training data held out if it has no val split.", low=0.02, high=0.5
    )
    skip_unreadable: int = option(0, "Tolerate and list up to this many unreadable images.", low=0)

    model: str = option("resnet18", "timm model, daptkit_lenet, or a model of a plugin.")
    model_kwargs: tuple[str, ...] = option((), "Arguments of the model.", metavar="KEY=VALUE")
    pretrained: bool = option(False, "Fetch the model's weights from timm's hub.")
    pretrained_path: str | None = option(
        None, "Local weights: safetensors or a timm state dict.", metavar="FILE"
    )
    init_from: str | None = option(
        None,
        "The site's own classifier with its head: a daptkit model folder, or a timm state dict.",
        metavar="MODEL",
    )
    classes: str | None = option(
        None, "Class names of a timm state dict's head, comma-separated.", metavar="A,B,..."
    )
    img_size: int | None = option(None, "Edge of the model's input in pixels.", low=8, high=4096)
    in_chans: int | None = option(None, "Channels of the model's input.", low=1, high=16)
    mean: tuple[float, ...] = option((), "Mean of the model's input, 1 or --in-chans values.")
    std: tuple[float, ...] = option((), "Deviation of the model's input, likewise.", low=1e-6)
    bottleneck: int = option(256, "Features of the bottleneck; 0 for none.", low=0, high=65536)
    dropout: float = option(0.0, "Dropout before the head.", low=0.0, high=0.95)
    finetune: str = option(
        "full",
        "frozen: train bottleneck and head on cached features; full: train everything.",
        choices=("frozen", "full"),
    )

    epochs: int = option(10, "Passes over the longer domain.", low=1, high=100000)
    batch_size: int = option(64, "Images per domain and step.", low=1, high=65536)
    opt: str = option("sgd", "Optimiser.", choices=("sgd", "adamw"))
    sched: str = option(
        "inverse", "inverse: (1+10p)^-0.75 over the run; cosine.", choices=("inverse", "cosine")
    )
    lr: float = option(0.01, "Learning rate of bottleneck, head and methods.", low=0.0)
    backbone_lr_scale: float | None = option(
        None, "Backbone's rate over the head's (0.1 with loaded weights, else 1).", low=0.0
    )
    weight_decay: float = option(1e-3, "Weight decay.", low=0.0)
    clip_grad: float | None = option(None, "Largest gradient norm.", low=0.0)
    aug: str = option(
        "auto",
        "Augmentation preset; auto chooses by the images, none when frozen.",
        choices=AUGMENTATIONS,
    )
    seed: int = option(0, "Seed of everything random.", low=0, high=2**31 - 1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    amp: bool = option(False, "Automatic mixed precision.")
    amp_dtype: str = option("bfloat16", "Its type.", choices=("bfloat16", "float16"))
    workers: int | None = option(None, "Threads that decode images (the CPU count).", low=0)
    log_interval: int = option(50, "Steps between lines of metrics.jsonl.", low=1)
    decide: str = option("map", "Decision rule: map, balanced or sens=CLASS:0.95.")
    resume: bool = option(False, "Continue the run in --out.")
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
