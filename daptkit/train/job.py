"""One model to train, and what training leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from daptkit.config import AdaptConfig
from daptkit.method import Method
from daptkit.model import AdaptNet
from daptkit.model.norms import Statistics
from daptkit.run import RunFolder
from daptkit.train.device import Precision
from daptkit.train.domains import TaskData
from daptkit.train.inference import SplitPasses
from daptkit.train.progress import Reporter
from daptkit.train.scoreset import ScoreSet
from daptkit.train.selection import Choice, Rule
from daptkit.train.world import ALONE, World


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model to train.

    Args:
        folder: where metrics and checkpoints go; ``None`` to leave nothing behind.
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
        identity: hash of the data, which a continued run must find unchanged.
        twin: passes of the source-only model, for methods that ask; ``None`` in folds.
        world: processes that train it together.
        events: whether plugins of the group ``daptkit.events`` hear of it.
        scores: what every epoch is scored by.
        rule: what the epoch to deliver is chosen by; ``None`` for the last one.
        stop_epoch: epoch to end after, of a schedule that is longer; ``None`` for the whole.
        fitted: what methods found of the images before training, by name, which a continued run
            must find again.
    """

    folder: RunFolder | None
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
    identity: str
    twin: SplitPasses | None = None
    world: World = ALONE
    events: bool = True
    scores: ScoreSet = field(default_factory=ScoreSet)
    rule: Rule | None = None
    stop_epoch: int | None = None
    fitted: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What training leaves behind, beside the trained model in the job.

    Args:
        class_weights: (K,) weights in force at the end.
        target_prior: (K,) estimate of the target prior, or ``None``.
        target_prior_interval: ends of its 95% interval, (K,) each, or ``None``.
        reports: what each method reports, plain values.
        notes: lines that methods told the user.
        parts: in how many parts a batch was passed at the end.
        passes: whole-split passes of the trained model.
        choice: of the epoch whose model this is; ``None`` where it is the last in any case.
        statistics: what the target is normalised by, by layer, where it is not the model's own.
    """

    class_weights: Tensor
    target_prior: Tensor | None = None
    target_prior_interval: tuple[Tensor, Tensor] | None = None
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parts: int = 1
    passes: SplitPasses
    choice: Choice | None = None
    statistics: Statistics = field(default_factory=dict)
