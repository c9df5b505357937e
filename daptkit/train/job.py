"""One model to train, and what training leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from daptkit.config import AdaptConfig
from daptkit.method import Method
from daptkit.model import AdaptNet
from daptkit.run import RunFolder
from daptkit.train.device import Precision
from daptkit.train.domains import TaskData
from daptkit.train.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to train.

    Args:
        folder: where metrics and checkpoints go.
        net: the model, on the device.
        methods: methods by name; none for source-only.
        packages: ``"package version"`` of each method.
        owners: role to method name.
        data: both domains.
        config: options.
        precision: device and mixed precision.
        backbone_scale: backbone's learning rate over the head's.
        reporter: where progress goes.
        label: name of the phase.
        events: whether plugins of the group ``daptkit.events`` hear of it.
    """

    folder: RunFolder
    net: AdaptNet
    methods: Mapping[str, Method]
    packages: Mapping[str, str]
    owners: Mapping[str, str]
    data: TaskData
    config: AdaptConfig
    precision: Precision
    backbone_scale: float
    reporter: Reporter
    label: str
    events: bool = True


@dataclass(frozen=True)
class FitResult:
    """What training leaves behind, beside the trained model in the job."""

    class_weights: Tensor
    target_prior: Tensor | None
    reports: dict[str, dict[str, Any]]
    notes: tuple[str, ...]
    steps: int
    seconds: float
