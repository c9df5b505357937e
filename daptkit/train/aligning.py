"""What the owners of the roles ``features`` and ``norm`` make of a model in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from daptkit.errors import PluginError
from daptkit.method import FitContext, Method
from daptkit.model.norms import Statistics, norm_modules
from daptkit.train.gather import Gather
from daptkit.train.guard import plugin_guard
from daptkit.train.job import Job
from daptkit.train.sight import PLAIN, Align, Sight

MakeContext = Callable[[], FitContext]
"""Returns what a hook may ask of the model as it now is, passed without any alignment."""


class Aligner:
    """Calls the owner of the role ``features``, and names it where it breaks the contract.

    Args:
        name: the method.
        package: its ``"package version"``.
        method: the method, on the device of the features.
    """

    def __init__(self, name: str, package: str, method: Method) -> None:
        self.method = method
        self._owner = name, package

    @classmethod
    def of(cls, job: Job) -> Aligner | None:
        """Return that of a job; ``None`` where no method owns the role."""
        name = job.owners.get("features")
        return None if name is None else cls(name, job.packages[name], job.methods[name])

    def fit(self, ctx: FitContext) -> None:
        """Let the method set its buffers."""
        with plugin_guard(*self._owner, "fit_features()"):
            self.method.fit_features(ctx)

    def in_eval(self, domain: str) -> Align:
        """Return what whole-split passes and predictions put before the bottleneck."""

        def align(features: Tensor) -> Tensor:
            with plugin_guard(*self._owner, "align_features()"):
                found = self.method.align_features(features, domain)
            self._check(found, features)
            if not bool(torch.isfinite(found).all()):
                raise self._fault("align_features() returned a value that is not finite")
            return found

        return align

    def of_batch(self, domain: str, weights: Tensor, gather: Gather) -> Align:
        """Return what a batch of one domain passes in training, its rows weighted."""

        def align(features: Tensor) -> Tensor:
            with plugin_guard(*self._owner, "align_batch()"):
                found = self.method.align_batch(features, domain, weights, gather)
            self._check(found, features)
            return found

        return align

    def _check(self, found: object, given: Tensor) -> None:
        if not isinstance(found, Tensor):
            raise self._fault(f"aligned features are {type(found).__name__}, not a tensor")
        if found.shape != given.shape or found.device != given.device:
            raise self._fault(
                f"aligned features are {tuple(found.shape)} on {found.device}, not"
                f" {tuple(given.shape)} on {given.device}"
            )

    def _fault(self, what: str) -> PluginError:
        name, package = self._owner
        return PluginError(f"method '{name}' ({package}): {what}.")


class Alignment:
    """How the model of a job sees both domains, for each state that training brings it to.

    Features are fitted before the first pass of a state, and statistics are asked for where the
    target is first passed: a run whose methods do not look at it in between pays for them once.

    Args:
        job: the job.
        context: makes the context of a hook.
    """

    def __init__(self, job: Job, context: MakeContext) -> None:
        self.aligner = Aligner.of(job)
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
        self._fitted, self._weights = True, class_weights

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
            self._statistics = checked_statistics(found, norm_modules(self._job.net), owner)
        return self._statistics

    def _fit(self) -> None:
        if self._fitted:
            return
        self._fitted = True
        if self.aligner is not None:
            self.aligner.fit(self._context())


def joined_align(n_source: int, source: Align, target: Align) -> Align:
    """Return what rows of both domains pass, ``n_source`` of the source first."""

    def align(features: Tensor) -> Tensor:
        return torch.cat([source(features[:n_source]), target(features[n_source:])])

    return align


def checked_statistics(found: object, modules: Mapping[str, nn.Module], owner: str) -> Statistics:
    """Return statistics in float32 on the CPU, if they fit the layers.

    Args:
        found: what a method returned.
        modules: layers by path.
        owner: for messages.

    Raises:
        PluginError: a path is no layer's, or its value is not a mean and a variance of it.
    """
    what = f"{owner}: norm_statistics() returned"
    if not isinstance(found, Mapping):
        raise PluginError(f"{what} {type(found).__name__} instead of a dict by module path.")
    checked = {}
    for name, pair in found.items():
        if name not in modules:
            raise PluginError(f"{what} {name!r}, which is no layer with running statistics.")
        if not (
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(v, Tensor) for v in pair)
        ):
            raise PluginError(f"{what} no pair of tensors for '{name}'.")
        mean, var = (value.detach().cpu().float() for value in pair)
        shape = modules[name].running_mean.shape  # type: ignore[union-attr]
        if mean.shape != shape or var.shape != shape:
            raise PluginError(f"{what} other shapes than {tuple(shape)} for '{name}'.")
        if not bool((mean.isfinite() & var.isfinite() & (var >= 0)).all()):
            raise PluginError(f"{what} a negative variance or no finite number for '{name}'.")
        checked[name] = (mean, var)
    return checked
