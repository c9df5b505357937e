"""Making the jobs of a run: the same model and options, with methods or without."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from daptkit.config import AdaptConfig
from daptkit.host import LoadedMethod
from daptkit.method import Method, TaskInfo
from daptkit.plugin import build_options
from daptkit.run import RunFolder
from daptkit.train.device import Precision, derive_seed
from daptkit.train.domains import TaskData
from daptkit.train.job import Job
from daptkit.train.prepare import Prepared
from daptkit.train.progress import Reporter
from daptkit.train.scoreset import ScoreSet
from daptkit.train.world import ALONE, World


@dataclass(frozen=True, kw_only=True)
class JobMaker:
    """Makes jobs that start from the same weights and seeds.

    Args:
        prepared: data and initial weights.
        config: options.
        precision: device and mixed precision.
        reporter: where progress goes.
        methods: methods of the run; none for source-only.
        world: processes of the run.
        label: what a model without methods is called.
        scores: what every epoch is scored by.
        stop_epoch: epoch that the jobs end after; ``None`` for the last one.
        states: what methods start from that were fitted before, by name.
        fitted: what a continued run must find again of these.
    """

    prepared: Prepared
    config: AdaptConfig
    precision: Precision
    reporter: Reporter
    methods: tuple[LoadedMethod, ...] = ()
    world: World = ALONE
    label: str = "source-only"
    scores: ScoreSet = field(default_factory=ScoreSet)
    stop_epoch: int | None = None
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    fitted: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def make(self, data: TaskData, folder: RunFolder | None) -> Job:
        """Return a job on ``data`` that writes to ``folder``; its model and methods are new.

        Raises:
            PluginError: a method's constructor failed.
        """
        net = self.prepared.network.make(self.precision.device)
        # After the model: which method is named must not change the model's initial weights.
        torch.manual_seed(derive_seed(self.config.seed, 1))
        return Job(
            folder=folder,
            net=net,
            methods={m.spec.name: self._create(m, data.task) for m in self.methods},
            packages={m.spec.name: f"{m.package} {m.version}" for m in self.methods},
            owners={role: m.spec.name for m in self.methods for role in m.spec.roles},
            data=data,
            config=self.config,
            precision=self.precision,
            backbone_scale=self.prepared.network.backbone_scale,
            reporter=self.reporter,
            label=self.config.method if self.methods else self.label,
            identity=self._identity(),
            world=self.world,
            scores=self.scores,
            stop_epoch=self.stop_epoch,
            fitted=self.fitted,
        )

    def try_methods(self) -> None:
        """Make each method once and let go of it.

        Raises:
            PluginError: a method's constructor failed.
        """
        for method in self.methods:
            self._create(method, self.prepared.data.task)

    def _create(self, method: LoadedMethod, task: TaskInfo) -> Method:
        name = method.spec.name
        values = self.config.method_options.get(name, {})
        made = method.create(build_options(method.spec.options, values, f"{name}."), task)
        if name in self.states:
            made.load_state_dict(dict(self.states[name]))
        return made

    def _identity(self) -> str:
        parts = [self.prepared.fingerprints, self.prepared.conversion.to_json()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
