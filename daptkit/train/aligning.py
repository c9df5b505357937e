"""What the owners of the roles ``features`` and ``norm`` make of a model in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from daptkit.errors import PluginError
from daptkit.host import LoadedMethod
from daptkit.method import FitContext
from daptkit.model import StoredAlignment
from daptkit.model.norms import Statistics, norm_modules
from daptkit.train.alignments import Aligner, Alignments, stored_alignment
from daptkit.train.gather import Gather
from daptkit.train.guard import plugin_guard
from daptkit.train.job import Job
from daptkit.train.sight import PLAIN, Align, Sight, Sights

MakeContext = Callable[[], FitContext]
"""Returns what a hook may ask of the model as it now is, passed without any alignment."""


class FeatureAligner:
    """Calls the owner of the role ``features``, in training and in whole-split passes.

    Args:
        owner: the method, on the device of the features.
    """

    def __init__(self, owner: Aligner) -> None:
        self._owner = owner
        self._in_eval = Alignments(owners={"features": owner})

    @classmethod
    def of(cls, job: Job) -> FeatureAligner | None:
        """Return that of a job; ``None`` where no method owns the role."""
        name = job.owners.get("features")
        if name is None:
            return None
        return cls(Aligner(name=name, package=job.packages[name], method=job.methods[name]))

    def fit(self, ctx: FitContext) -> None:
        """Let the method set its buffers."""
        with plugin_guard(self._owner.name, self._owner.package, "fit_features()"):
            self._owner.method.fit_features(ctx)

    def in_eval(self, domain: str) -> Align:
        """Return what whole-split passes put before the bottleneck."""
        return partial(self._in_eval.align_features, domain=domain)

    def changes(self, width: int, like: Tensor) -> bool:
        """Whether drawn features (N, ``width``), on the device of ``like``, come out as others."""
        drawn = torch.randn(8, width, generator=torch.Generator().manual_seed(0)).to(like)
        return any(not torch.equal(self.in_eval(d)(drawn), drawn) for d in ("source", "target"))

    def of_batch(self, domain: str, weights: Tensor, gather: Gather) -> Align:
        """Return what a batch of one domain passes in training, its rows weighted."""

        def align(features: Tensor) -> Tensor:
            owner = self._owner
            with plugin_guard(owner.name, owner.package, "align_batch()"):
                found: Any = owner.method.align_batch(features, domain, weights, gather)
            if not isinstance(found, Tensor):
                raise owner.fault(f"align_batch() returned {type(found).__name__}, not a tensor")
            if found.shape != features.shape or found.device != features.device:
                raise owner.fault(
                    f"align_batch() returned {tuple(found.shape)} on {found.device} for"
                    f" {tuple(features.shape)} on {features.device}"
                )
            return found

        return align


class Alignment:
    """How the model of a job sees both domains, for each state that training brings it to.

    Features are fitted before the first pass of a state, and statistics are asked for where the
    target is first passed: a run whose methods do not look at it in between pays for them once.

    Args:
        job: the job.
        context: makes the context of a hook.
    """

    def __init__(self, job: Job, context: MakeContext) -> None:
        self.aligner = FeatureAligner.of(job)
        self._job = job
        self._context = context
        self._weights = torch.ones(job.data.task.num_classes)
        self._fitted = False
        self._statistics: Statistics | None = None
        # Layers that no pass of a frozen run reaches have no statistics to choose.
        there = not job.data.from_trunk and norm_modules(job.net)
        self._norm = job.owners.get("norm") if there else None

    @property
    def apart(self) -> bool:
        """Whether each domain is normalised by its own batches in training."""
        if self._norm is None or self._job.config.bn == "frozen" or not self._job.net.batchnorm():
            return False
        with plugin_guard(self._norm, self._job.packages[self._norm], "normalises_apart()"):
            return self._job.methods[self._norm].normalises_apart()

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods that have a part in how a pass sees a domain."""
        owners = (self._job.owners.get("features"), self._norm)
        return tuple(dict.fromkeys(name for name in owners if name is not None))

    def begin(self, class_weights: Tensor) -> None:
        """Make ready for an epoch, whose class weights may be others than were in force."""
        if not torch.equal(self._weights, class_weights):
            self._fitted, self._statistics = False, None
            self._weights = class_weights
        self._fit()

    def resume(self, class_weights: Tensor) -> None:
        """Continue with the fit of a checkpoint, which is in the method's buffers."""
        self._fitted, self._statistics, self._weights = True, None, class_weights

    def trained(self) -> None:
        """Forget what was fitted to the model before it was trained."""
        self._statistics = None
        # A frozen trunk's features stay what they are.
        self._fitted = self._fitted and self._job.data.from_trunk

    def sight(self, domain: str) -> Sight:
        """Return how the model, as it now is, sees a domain. Every process must ask."""
        if not self.methods:
            return PLAIN
        self._fit()
        statistics = self.statistics() if domain == "target" else {}
        align = None if self.aligner is None else self.aligner.in_eval(domain)
        return Sight(align=align, statistics=statistics)

    def statistics(self) -> Statistics:
        """Return what the target is normalised by, where that is not what the source is.

        Raises:
            PluginError: the owner of the role raises, or returns something else.
        """
        if self._norm is None:
            return {}
        if self._statistics is None:
            with plugin_guard(self._norm, self._job.packages[self._norm], "norm_statistics()"):
                found = self._job.methods[self._norm].norm_statistics(self._context())
            owner = f"method '{self._norm}' ({self._job.packages[self._norm]})"
            shapes = {name: _shape(layer) for name, layer in norm_modules(self._job.net).items()}
            self._statistics = checked_statistics(found, shapes, owner)
        return self._statistics

    def _fit(self) -> None:
        if self._fitted:
            return
        self._fitted = True
        if self.aligner is not None:
            self.aligner.fit(self._context())


def kept_alignments(
    methods: Sequence[LoadedMethod], job: Job, statistics: Statistics
) -> tuple[StoredAlignment, ...]:
    """Return what a model folder holds of what was fitted in training.

    A method that leaves features as they are is not needed at prediction for their sake.

    Args:
        methods: of the run.
        job: the job, trained to the end.
        statistics: what the target is normalised by.
    """
    kept = []
    aligner = FeatureAligner.of(job)
    for loaded in methods:
        name, roles = loaded.spec.name, set()
        if job.owners.get("norm") == name and statistics:
            roles.add("norm")
        if job.owners.get("features") == name and aligner is not None:
            roles |= {"features"} if aligner.changes(job.net.trunk_dim, job.net.mean) else set()
        if roles:
            method = job.methods[name]
            norm = statistics if "norm" in roles else None
            kept.append(stored_alignment(loaded, method, method.options, frozenset(roles), norm))
    return tuple(kept)


def sights_of(alignments: Alignments) -> Sights:
    """Return how a model that is brought back from its folder sees each domain.

    Args:
        alignments: of the folder, on the device of the model.
    """

    def sight(domain: str) -> Sight:
        called = "features" in alignments.owners
        return Sight(
            align=partial(alignments.align_features, domain=domain) if called else None,
            statistics=alignments.norm if domain == "target" else {},
        )

    return sight


def joined_align(n_source: int, source: Align, target: Align) -> Align:
    """Return what rows of both domains pass, ``n_source`` of the source first."""

    def align(features: Tensor) -> Tensor:
        return torch.cat([source(features[:n_source]), target(features[n_source:])])

    return align


def checked_statistics(found: object, shapes: Mapping[str, torch.Size], owner: str) -> Statistics:
    """Return statistics in float32 on the CPU, if they fit the layers.

    Args:
        found: what a method returned.
        shapes: of the running mean of each layer, by path.
        owner: for messages.

    Raises:
        PluginError: a path is no layer's, or its value is not a mean and a variance of it.
    """
    what = f"{owner}: norm_statistics() returned"
    if not isinstance(found, Mapping):
        raise PluginError(f"{what} {type(found).__name__} instead of a dict by module path.")
    checked = {}
    for name, pair in found.items():
        if name not in shapes:
            raise PluginError(f"{what} {name!r}, which is no layer with running statistics.")
        if not (
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(v, Tensor) for v in pair)
        ):
            raise PluginError(f"{what} no pair of tensors for '{name}'.")
        mean, var = (value.detach().cpu().float() for value in pair)
        if mean.shape != shapes[name] or var.shape != shapes[name]:
            raise PluginError(f"{what} other shapes than {tuple(shapes[name])} for '{name}'.")
        if not bool((mean.isfinite() & var.isfinite() & (var >= 0)).all()):
            raise PluginError(f"{what} a negative variance or no finite number for '{name}'.")
        checked[name] = (mean, var)
    return checked


def _shape(layer: nn.Module) -> torch.Size:
    return layer.get_buffer("running_mean").shape
