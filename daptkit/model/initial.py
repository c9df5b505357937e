"""Start from the site's own classifier, with its head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daptkit.errors import DataError, UsageError
from daptkit.model.build import Factories, build_model
from daptkit.model.config import ModelConfig, resolve_model_config
from daptkit.model.files import WeightsReport, file_sha256, read_state_dict
from daptkit.model.folder import META_FILE, WEIGHTS_FILE, load_model_folder
from daptkit.model.network import AdaptNet
from daptkit.model.weights import fill_backbone, strip_prefix


def init_from(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    name: str = "resnet18",
    kwargs: Mapping[str, Any] | Sequence[str] = (),
    img_size: int | None = None,
    in_chans: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    dropout: float = 0.0,
    factories: Factories | None = None,
    trust: bool = False,
) -> tuple[AdaptNet, ModelConfig, tuple[str, ...], WeightsReport]:
    """Load a whole classifier: a daptkit model folder, or a timm state dict with its head.

    A model folder brings its own architecture and classes, and the model settings are not used
    but for ``dropout``. A state dict is taken as the named timm model without bottleneck: its
    classifier becomes the head.

    Args:
        path: model folder, run folder, or a safetensors or timm state dict file.
        classes: class names in the order of the head; needed for a state dict.
        name: timm model of a state dict.
        kwargs: its arguments.
        img_size: its input edge in pixels.
        in_chans: its input channels.
        mean: its input mean, as for ``resolve_model_config``.
        std: its input deviation.
        dropout: before the head, in [0, 1).
        factories: backbones of plugins by name.
        trust: of a state dict, as for :func:`daptkit.model.files.read_state_dict`.

    Returns:
        The network, its configuration, its classes and what was loaded.

    Raises:
        UsageError: a state dict without ``classes``, or an unknown model.
        DataError: the file or folder is unusable, or does not fit the model or the classes.
    """
    folder = model_folder(Path(path))
    if folder is not None:
        return _from_folder(folder, classes, dropout, factories)
    path = Path(path)
    tensors = read_state_dict(path, trust=trust)
    if not classes:
        raise UsageError(
            "--init-from with a state dict needs --classes, the class names in the order of its "
            "head: --classes A,B,..."
        )
    config = resolve_model_config(
        name,
        kwargs,
        img_size,
        in_chans,
        mean,
        std,
        num_classes=len(classes),
        bottleneck=0,
        dropout=dropout,
        factories=factories,
    )
    net = build_model(config, factories=factories)
    tensors = strip_prefix(net, tensors)
    weight, bias, used = _classifier(net, tensors, path)
    report = fill_backbone(net, tensors, path)
    with torch.no_grad():
        net.head.weight.copy_(weight)
        net.head.bias.copy_(bias)
    unexpected = tuple(k for k in report.unexpected if k not in used)
    return net, config, tuple(classes), replace(report, unexpected=unexpected)


def model_folder(path: Path) -> Path | None:
    """Return the model folder that ``path`` means: itself, a run's, or that of its weights."""
    if path.is_file():
        inside = path.name == WEIGHTS_FILE and (path.parent / META_FILE).is_file()
        return path.parent if inside else None
    if path.is_dir():
        return path if (path / META_FILE).is_file() else path / "model"
    return None


def _from_folder(
    folder: Path, classes: Sequence[str] | None, dropout: float, factories: Factories | None
) -> tuple[AdaptNet, ModelConfig, tuple[str, ...], WeightsReport]:
    loaded = load_model_folder(folder, factories=factories)
    if classes and tuple(classes) != loaded.classes:
        raise UsageError(
            f"--classes {','.join(classes)} differs from the classes of model folder {folder}: "
            f"{','.join(loaded.classes)}. Leave --classes out."
        )
    config = replace(loaded.config, dropout=dropout)
    net = loaded.net
    net.config = config
    net.dropout.p = dropout
    net.train()
    total = sum(not k.endswith("num_batches_tracked") for k in net.backbone.state_dict())
    sha256 = file_sha256(folder / WEIGHTS_FILE)
    return net, config, loaded.classes, WeightsReport(sha256=sha256, matched=total, total=total)


def _classifier(
    net: AdaptNet, tensors: Mapping[str, Tensor], path: Path
) -> tuple[Tensor, Tensor, set[str]]:
    """Find the timm classifier's weight (K, D') and bias (K,), and the names they had."""
    cfg = getattr(net.backbone, "pretrained_cfg", None)
    name = cfg.get("classifier") if isinstance(cfg, Mapping) else None
    if name is not None and not isinstance(name, str):
        raise DataError(f"weights file {path}: {net.config.name} has several heads; not supported.")
    name = name or "head"
    weight = tensors.get(f"{name}.weight")
    if weight is None:
        raise DataError(
            f"weights file {path}: has no head {name}.weight. Load a backbone without its head "
            "with --pretrained-path."
        )
    if weight.ndim > 2 and weight[0].numel() == weight.shape[1]:
        weight = weight.flatten(1)  # a 1x1 convolution over pooled features
    classes, features = net.config.num_classes, net.trunk_dim
    if weight.ndim != 2 or weight.shape[1] != features:
        raise DataError(
            f"weights file {path}: {name}.weight has shape {tuple(weight.shape)}, and "
            f"{net.config.name} has {features} features. Name its architecture with --model."
        )
    if len(weight) != classes:
        raise DataError(
            f"weights file {path}: its head has {len(weight)} outputs, and --classes names "
            f"{classes} classes."
        )
    bias = tensors.get(f"{name}.bias", torch.zeros(classes))
    if bias.shape != (classes,) or not (weight.isfinite().all() and bias.isfinite().all()):
        raise DataError(f"weights file {path}: the head {name} is damaged.")
    return weight, bias, {f"{name}.weight", f"{name}.bias"}
