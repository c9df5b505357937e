"""One training step as one module: model, methods and the sum of their named losses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from daptkit.errors import PluginError
from daptkit.method import DomainBatch, Method, StepContext
from daptkit.model import AdaptNet
from daptkit.nn import weighted_mean
from daptkit.nn.moments import reciprocal
from daptkit.nn.precision import full_precision
from daptkit.train.aligning import FeatureAligner, joined_align
from daptkit.train.domains import DomainInputs
from daptkit.train.gather import Gather, batch_norm_over
from daptkit.train.guard import batchnorm_guard, plugin_guard
from daptkit.train.sight import Align

_cross_entropy = full_precision(functional.cross_entropy)


@dataclass(frozen=True)
class StepResult:
    """Named scalar losses of a step, what methods logged, and the source accuracy in the batch."""

    losses: dict[str, Tensor]
    logs: dict[str, Tensor]

    @property
    def total(self) -> Tensor:
        """Sum of the losses as returned."""
        values = [value.float() for value in self.losses.values()]
        return values[0] if len(values) == 1 else torch.stack(values).sum()

    def detached(self) -> StepResult:
        """Return the same numbers without their graph."""
        return StepResult({k: v.detach() for k, v in self.losses.items()}, self.logs)


@dataclass(frozen=True)
class Part:
    """That a forward sees one of the equal parts of a batch.

    Args:
        of: the number of parts.
        labels: (B,) source labels of the whole batch of this process.
    """

    of: int
    labels: Tensor | None


class Step(nn.Module):
    """Model and methods in one module, so that a wrapper sees every parameter.

    Args:
        net: the model.
        methods: methods by name, in the order of ``-m``.
        packages: ``"package version"`` of each method, for messages.
        split: whether source and target pass the network one after the other.
        gather: concatenates over the processes that share a batch, see
            :func:`daptkit.train.gather.gather_over`; ``None`` for one process.
        backbone: what is called in place of the model's backbone, such as its compiled form.
        apart: as ``split``, but the running statistics are the source's.
        aligner: what pooled features of each domain pass before the bottleneck.
    """

    def __init__(
        self,
        net: AdaptNet,
        methods: Mapping[str, Method],
        packages: Mapping[str, str],
        *,
        split: bool = False,
        gather: Gather | None = None,
        backbone: Callable[[Tensor], Tensor] | None = None,
        apart: bool = False,
        aligner: FeatureAligner | None = None,
    ) -> None:
        super().__init__()
        self.split = split or apart
        self.apart = apart
        self.aligner = aligner
        self.gather = gather
        self.backbone = backbone
        self.net = net
        # The prefix keeps names such as 'keys' apart from ModuleDict's own.
        self.methods = nn.ModuleDict({f"method_{name}": m for name, m in methods.items()})
        self.names = tuple(methods)
        self.packages = dict(packages)
        self.layers = tuple(
            dict.fromkeys(("features", *(tap for m in methods.values() for tap in m.layers)))
        )

    def method(self, name: str) -> Method:
        """Return a method by name."""
        found = self.methods[f"method_{name}"]
        assert isinstance(found, Method)
        return found

    def forward(
        self,
        source: DomainInputs,
        target: DomainInputs | None,
        *,
        progress: float,
        step: int,
        class_weights: Tensor,
        target_prior: Tensor | None,
        from_trunk: bool,
        generator: torch.Generator,
        part: Part | None = None,
    ) -> StepResult:
        """Return the losses of one step.

        Source and target pass the model in one concatenated forward, so that normalisation layers
        see both, or, ``split``, one after the other, each normalised by itself; then running
        statistics are the target's, or, ``apart``, the source's. The classification loss is the
        mean weighted by ``class_weights`` (K,), over the rows of all processes. Each process passes
        its own rows, as many as every other, and finds the losses of them all.

        Of a ``part`` of a batch the losses are its contributions, which sum over the parts to the
        classification loss of the whole batch and to the mean of each loss of a method.
        """
        n_source = len(source.inputs)
        other = None if target is None else target.inputs
        assert source.labels is not None
        weights = class_weights[source.labels]
        with batchnorm_guard(1 if part is None else part.of):
            logits, taps = self._pass(source.inputs, other, from_trunk, weights)
        # A slice of all rows would still be copied in the backward pass.
        own = logits if target is None else logits[:n_source]
        cross_entropy = _cross_entropy(own, source.labels, reduction="none")
        gather = self.gather or _alone
        mass = gather(weights)
        classification = weighted_mean(gather(cross_entropy), mass)
        if part is not None:
            assert part.labels is not None
            # Parts count by the weight of their images, not all the same.
            whole = gather(class_weights[part.labels])
            classification = classification * (mass.sum() * reciprocal(whole.sum()))
        losses = {"classification": classification}
        right = own.argmax(1) == source.labels
        logs: dict[str, Tensor] = {"source_accuracy": gather(right).float().mean()}
        if target is None:
            return StepResult(losses, logs)
        source_batch = _batch(source, own, _rows(taps, 0, n_source), weights)
        ones = torch.ones(len(target.inputs), device=logits.device)
        target_batch = _batch(target, logits[n_source:], _rows(taps, n_source, None), ones)

        def forward(extra: Tensor) -> DomainBatch:
            # Running statistics are those of the batches, whatever else a method looks at.
            with self.net.running_statistics_held():
                align = self._align("target", ones.new_ones(len(extra)))
                extra_logits, extra_taps = self._run(extra, from_trunk, align)
            return DomainBatch(
                logits=extra_logits,
                taps=extra_taps,
                inputs=extra,
                weights=ones.new_ones(len(extra)),
                groups=target.groups.new_full((len(extra),), -1),
                index=target.rows.new_full((len(extra),), -1),
            )

        for name in self.names:

            def log(key: str, value: Tensor, prefix: str = name) -> None:
                logs[f"{prefix}/{key}"] = value.detach().float().reshape(())

            context = StepContext(
                progress=progress,
                step=step,
                class_weights=class_weights,
                target_prior=target_prior,
                forward=forward,
                gather=gather,
                log=log,
                generator=generator,
            )
            for key, value in self._method_losses(name, source_batch, target_batch, context):
                losses[f"{name}/{key}"] = value if part is None else value / part.of
        return StepResult(losses, logs)

    def _pass(
        self, source: Tensor, target: Tensor | None, from_trunk: bool, weights: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits and taps of both domains, source first."""
        align_s = self._align("source", weights)
        if target is None:
            return self._run(source, from_trunk, align_s)
        n_source = len(source)
        align_t = self._align("target", weights.new_ones(len(target)))
        if not self.split:
            align = None
            if align_s is not None and align_t is not None:
                # Each domain by itself, though they pass the rest together.
                align = joined_align(n_source, align_s, align_t)
            return self._run(torch.cat([source, target]), from_trunk, align)
        # The delivered model works at the target, whose statistics it shall hold, unless these
        # are kept apart from the source's.
        with self._held(not self.apart):
            logits_s, taps_s = self._run(source, from_trunk, align_s)
        with self._held(self.apart):
            logits_t, taps_t = self._run(target, from_trunk, align_t)
        taps = {name: torch.cat([taps_s[name], taps_t[name]]) for name in taps_s}
        return torch.cat([logits_s, logits_t]), taps

    def _held(self, held: bool) -> contextlib.AbstractContextManager[None]:
        return self.net.running_statistics_held() if held else contextlib.nullcontext()

    def _align(self, domain: str, weights: Tensor) -> Align | None:
        if self.aligner is None:
            return None
        return self.aligner.of_batch(domain, weights, self.gather or _alone)

    def _run(
        self, inputs: Tensor, from_trunk: bool, align: Align | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with batch_norm_over(self.gather):
            logits, taps = self.net(
                inputs, self.layers, from_trunk=from_trunk, backbone=self.backbone, align=align
            )
        return logits, taps

    def _method_losses(
        self, name: str, source: DomainBatch, target: DomainBatch, context: StepContext
    ) -> list[tuple[str, Tensor]]:
        with plugin_guard(name, self.packages[name], "losses()"), batch_norm_over(self.gather):
            returned = self.method(name).losses(source, target, context)
        owner = f"method '{name}' ({self.packages[name]})"
        if not isinstance(returned, dict):
            raise PluginError(
                f"{owner} returned {type(returned).__name__} instead of a dict of named losses."
            )
        for key, value in returned.items():
            if not isinstance(value, Tensor) or value.dim() != 0:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise PluginError(f"{owner}: loss '{key}' must be a scalar tensor, not {shape}.")
            if value.device != source.logits.device:
                raise PluginError(
                    f"{owner}: loss '{key}' is on {value.device}, the model on"
                    f" {source.logits.device}; make new tensors on the device of the inputs."
                )
        return list(returned.items())


def _alone(x: Tensor) -> Tensor:
    return x


def _batch(
    inputs: DomainInputs, logits: Tensor, taps: dict[str, Tensor], weights: Tensor
) -> DomainBatch:
    return DomainBatch(
        logits=logits,
        taps=taps,
        inputs=inputs.inputs,
        labels=inputs.labels,
        weights=weights,
        groups=inputs.groups,
        index=inputs.rows,
    )


def _rows(taps: Mapping[str, Tensor], start: int, stop: int | None) -> dict[str, Tensor]:
    return {name: value[start:stop] for name, value in taps.items()}
