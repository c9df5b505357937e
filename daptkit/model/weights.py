"""Load local weights into the backbone, and refuse a file that does not fit it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from daptkit.errors import DataError
from daptkit.model.build import BUILD_ERRORS
from daptkit.model.files import WeightsReport, file_sha256, first_names, read_state_dict
from daptkit.model.network import AdaptNet

MIN_MATCHED = 0.9
"""Smallest part of the backbone's tensors that a file must fill."""

WRAPPER_NAMES = (
    "module",
    "_orig_mod",
    "model",
    "backbone",
    "encoder",
    "net",
    "trunk",
    "base_model",
)
"""Names that wrappers (DataParallel, torch.compile, Lightning, daptkit) put before a tensor's."""


def load_backbone_weights(net: AdaptNet, path: str | Path, *, trust: bool = False) -> WeightsReport:
    """Load the backbone's tensors from a local file; the classifier's are ignored and reported.

    Args:
        net: network whose backbone is filled in place.
        path: safetensors or a timm state dict.
        trust: as for :func:`daptkit.model.files.read_state_dict`.

    Raises:
        DataError: the file is not readable, holds values that are not finite, or fewer than 90 %
            of the backbone's tensors match in name and shape.
    """
    path = Path(path)
    return fill_backbone(net, strip_prefix(net, read_state_dict(path, trust=trust)), path)


def fill_backbone(net: AdaptNet, tensors: Mapping[str, Tensor], path: Path) -> WeightsReport:
    """Copy the tensors that match in name and shape; see :func:`load_backbone_weights`."""
    fitted = fit_tensors(net, tensors)
    state = net.backbone.state_dict()
    matching = {k: v for k, v in fitted.items() if k in state and v.shape == state[k].shape}
    wanted = [name for name in state if not _is_counter(name)]
    missing = tuple(name for name in wanted if name not in matching)
    report = WeightsReport(
        sha256=file_sha256(path),
        matched=len(wanted) - len(missing),
        total=len(wanted),
        unexpected=tuple(sorted(set(fitted) - set(state))),
        missing=missing,
    )
    if report.matched < MIN_MATCHED * report.total:
        raise DataError(_mismatch(net, path, report, fitted))
    broken = [k for k, v in matching.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise DataError(f"weights file {path}: {broken[0]} holds values that are not finite.")
    net.backbone.load_state_dict(matching, strict=False)
    return report


def strip_prefix(net: AdaptNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the wrapper prefix, such as ``module.``, under which most names match."""
    state = net.backbone.state_dict()
    prefixes = [""]
    for depth in (1, 2, 3):
        prefixes += [".".join(p) + "." for p in itertools.product(WRAPPER_NAMES, repeat=depth)]
    present = [p for p in prefixes if any(k.startswith(p) for k in tensors)]
    best = max(present, key=lambda p: sum(p + name in tensors for name in state), default="")
    return {k.removeprefix(best): v for k, v in tensors.items()}


def fit_tensors(net: AdaptNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapt the tensors to the backbone's input: its channels, and its position codes' size."""
    fitted = _adapt_first_conv(net, tensors)
    if _count(net.backbone, fitted) == sum(not _is_counter(k) for k in net.backbone.state_dict()):
        return fitted
    # timm keeps each family's remapping (resized position codes, older names) beside the model.
    remap = getattr(sys.modules[type(net.backbone).__module__], "checkpoint_filter_fn", None)
    if remap is None:
        return fitted
    try:
        remapped = remap(dict(fitted), net.backbone)
    except BUILD_ERRORS:
        return fitted  # written for another family's file: the count below says what is missing
    better = _count(net.backbone, remapped) > _count(net.backbone, fitted)
    return dict(remapped) if better else fitted


def _adapt_first_conv(net: AdaptNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum or repeat the first convolution's colour channels for another number of channels."""
    fitted = dict(tensors)
    state = net.backbone.state_dict()
    for name in _first_convs(net.backbone):
        key = f"{name}.weight"
        if key not in fitted or key not in state or fitted[key].ndim != 4:
            continue
        have, want = fitted[key].shape, state[key].shape
        if have[1] % 3 == 0 and have[1] != want[1] and have[2:] == want[2:]:
            try:
                fitted[key] = adapt_input_conv(net.config.in_chans, fitted[key])
            except NotImplementedError:
                continue  # left as it is, so it is counted and listed as not matching
    return fitted


def _first_convs(backbone: nn.Module) -> Sequence[str]:
    cfg = getattr(backbone, "pretrained_cfg", None)
    named = cfg.get("first_conv") if isinstance(cfg, Mapping) else None
    if named is None:
        convs = (name for name, m in backbone.named_modules() if isinstance(m, nn.Conv2d))
        named = next(convs, ())
    return (named,) if isinstance(named, str) else tuple(named)


def _count(backbone: nn.Module, tensors: Mapping[str, Tensor]) -> int:
    state = backbone.state_dict()
    return sum(
        name in tensors and tensors[name].shape == value.shape
        for name, value in state.items()
        if not _is_counter(name)
    )


def _is_counter(name: str) -> bool:
    # Older files lack BatchNorm's counters, which no forward pass reads.
    return name.endswith("num_batches_tracked")


def _mismatch(
    net: AdaptNet, path: Path, report: WeightsReport, tensors: Mapping[str, Tensor]
) -> str:
    state = net.backbone.state_dict()
    shapes = [
        f"{k} {_shape(tensors[k])} instead of {_shape(state[k])}"
        for k in report.missing
        if k in tensors
    ]
    absent = [k for k in report.missing if k not in tensors]
    parts = [
        f"weights file {path}: only {report.matched} of the {report.total} tensors of "
        f"{net.config.name} match in name and shape."
    ]
    for title, names in (
        ("Missing", absent),
        ("Other shape", shapes),
        ("In the file", report.unexpected),
    ):
        if names:
            parts.append(f"{title}: {first_names(names)}.")
    parts.append("Name the file's architecture with --model, --model-kwargs and --in-chans.")
    return " ".join(parts)


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "scalar"
