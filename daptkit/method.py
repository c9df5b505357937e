"""The torch half of a plugin: what a method receives and what it returns.

Shape letters: N images of a batch or split, K classes, D features, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What is known of the task before training.

    Args:
        classes: class names, in the order of the logits.
        dims: flattened size of each tapped layer, ``{"features": D, "logits": K}``.
        source_prior: class frequencies of the source training images, (K,), sums to 1.
        n_source: number of source training images.
        n_target: number of unlabelled target images.
    """

    classes: tuple[str, ...]
    dims: Mapping[str, int]
    source_prior: Tensor
    n_source: int
    n_target: int

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.classes)


@dataclass(frozen=True, kw_only=True)
class DomainBatch:
    """Images of one domain after the model: a training batch, or a whole split.

    Target batches carry no labels: ``labels`` is ``None`` and the host has nothing to put there.

    Args:
        logits: (N, K), uncorrected.
        taps: layer name to activations (N, ...); always holds ``"features"`` and ``"logits"``.
        inputs: (N, C, H, W) images as the model saw them, or cached trunk features (N, D') of a
            frozen run; ``None`` for whole splits.
        labels: (N,) int64 class indices of source images.
        weights: (N,) importance weight of each image; the class weight of its label for the
            source, ones for the target.
        groups: (N,) int64 patient number, unique within the domain; one per image if unknown.
        index: (N,) int64 row of the domain's table.
        views: further augmented views of the same images, for methods that need them.
    """

    logits: Tensor
    taps: Mapping[str, Tensor]
    inputs: Tensor | None = None
    labels: Tensor | None = None
    weights: Tensor
    groups: Tensor
    index: Tensor
    views: tuple[DomainBatch, ...] = ()

    @property
    def features(self) -> Tensor:
        """Output of the bottleneck, (N, D)."""
        return self.taps["features"]

    def __len__(self) -> int:
        return int(self.logits.shape[0])


def _identity(x: Tensor) -> Tensor:
    return x


def _discard(name: str, value: Tensor) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a method may use during one training step.

    Args:
        progress: fraction of the whole run that is done, in [0, 1].
        step: training step, from 0.
        class_weights: (K,) importance weights in force (ones when no method owns them).
        target_prior: (K,) estimate of the target prior, or ``None``.
        forward: runs the model on further inputs of the target, unweighted.
        gather: differentiable concatenation over all processes, (N, ...) -> (W * N, ...).
        log: records a named scalar tensor beside the losses; never reads it back here.
        generator: random generator on the step's device, a function of seed and step.
    """

    progress: float
    step: int
    class_weights: Tensor
    target_prior: Tensor | None = None
    forward: Callable[[Tensor], DomainBatch] | None = None
    gather: Callable[[Tensor], Tensor] = _identity
    log: Callable[[str, Tensor], None] = _discard
    generator: torch.Generator | None = None


@dataclass(frozen=True, kw_only=True)
class NormLayer:
    """What a layer with running statistics does in eval mode: (x - mean) / sqrt(var + eps).

    Args:
        mean, var: (C,) of each channel, float64 on the CPU.
        eps: added to the variance.
    """

    mean: Tensor
    var: Tensor
    eps: float


class FitContext(Protocol):
    """What a method may ask for between epochs. Every process calls it in the same order."""

    task: TaskInfo
    epoch: int
    epochs: int
    seed: int
    finetune: str

    @property
    def num_classes(self) -> int:
        """Number of classes K."""

    @property
    def progress(self) -> float:
        """Fraction of the whole run that is done, in [0, 1]."""

    def predict(self, split: str, layers: tuple[str, ...] = ("features",)) -> DomainBatch:
        """Run the model in eval mode over a whole split, without augmentation.

        Args:
            split: ``"source_train"``, ``"source_val"`` or ``"target"`` (without labels).
            layers: taps to return; ``"trunk"`` is the backbone's pooled output.

        Returns:
            CPU float32 tensors; uncorrected logits; ``weights`` are those in force.
        """

    def source_only(
        self, split: str, layers: tuple[str, ...] = ("features",)
    ) -> DomainBatch | None:
        """Run the source-only twin over a whole split; like :meth:`predict`, with weights of 1.

        It sees the images as the run's methods do: changed, where one owns ``inputs``. ``None``
        where there is no twin: inside the folds of cross-fitting.
        """

    def images(self, domain: str, limit: int) -> Tensor:
        """Return up to ``limit`` images of ``"source"`` or ``"target"``, (N, C, H, W) in [0, 1].

        Where a method owns ``inputs``, they are as it changes them.
        """

    def norm_layers(self) -> dict[str, NormLayer]:
        """Return the model's own statistics, by module path.

        Of every BatchNorm layer of the backbone; empty where there is none, or where a frozen run
        reads cached features and does not run the backbone.
        """

    def input_moments(
        self, domain: str, layers: tuple[str, ...] | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and variance of what enters each normalisation layer, by channel.

        One pass in eval mode over the domain's training images, without augmentation. Nothing is
        kept of an image but its own moments, and how images are batched does not matter. Source
        images count by the class weights in force.

        Args:
            domain: ``"source"`` or ``"target"``.
            layers: paths of :meth:`norm_layers`, all by default, or ``"trunk"`` for the backbone's
                pooled output, which every run has.

        Returns:
            (mean (C,), variance (C,)), float64 on the CPU, the variance divided by the sum of
            weights; a layer that the pass did not reach is left out.
        """

    def chained_statistics(
        self,
        domain: str,
        choose: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]],
        limit: int | None = None,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what every layer normalises by, chosen where those before it are chosen.

        What a layer is fed depends on the statistics of the layers before it. Each is asked for in
        the order in which they run, with the moments of its inputs, as of :meth:`input_moments`,
        under what was chosen before.

        Args:
            domain: ``"source"`` or ``"target"``.
            choose: from path, mean (C,) and variance (C,) of the inputs to the mean and variance
                that the layer normalises by; it asks nothing of this context.
            limit: images at most, spread evenly over the domain's training images; all by default.
                Several hundred pass at once; beyond what memory holds every layer costs a pass.

        Returns:
            What was chosen, by path; empty in a frozen run.
        """

    def note(self, text: str) -> None:
        """Tell the user one line, for example that an estimate was not trusted."""

    def log(self, name: str, value: float) -> None:
        """Record a named number in ``metrics.jsonl`` for this epoch."""


class Method(nn.Module):
    """Base class of an adaptation method.

    A method returns named losses and never steps an optimiser. Its parameters and buffers are
    saved, moved and resumed by the host, and no other attribute is: whatever steps depend on, such
    as a running average of weights, is a buffer, registered in ``__init__`` in its final shape.
    Subclasses override only what they need.

    Args:
        options: instance of the options dataclass named by the method's specification.
        task: classes, sizes and source prior.
    """

    layers: tuple[str, ...] = ("features",)
    """Taps the method reads: ``"features"``, ``"logits"`` or any module path of the model."""

    def __init__(self, options: Any, task: TaskInfo) -> None:
        super().__init__()
        self.options = options
        self.task = task

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return named scalar losses of one step; they are summed as returned."""
        return {}

    def param_groups(self) -> list[dict[str, Any]]:
        """Return optimiser groups ``{"params": [...], "lr_scale": float}``; 1 is the head's."""
        params = list(self.parameters())
        return [{"params": params, "lr_scale": 1.0}] if params else []

    def class_weights(self) -> Tensor | None:
        """Role ``class_weights``: (K,) ratio of target to source prior, or ``None``.

        At prediction the host takes them back, unless ``target_prior`` names another prior.
        """
        return None

    def target_prior(self) -> Tensor | None:
        """Role ``target_prior``: (K,) prior of the target, used once at prediction, or ``None``."""
        return None

    def target_prior_interval(self) -> tuple[Tensor, Tensor] | None:
        """Role ``target_prior``: the ends of its 95% interval, (K,) each, or ``None``."""
        return None

    def fit_images(self, source: Tensor, target: Tensor) -> None:
        """Role ``inputs``: called once before anything else of the run.

        What is found here goes into buffers, so that it is saved, resumed and stored. A model
        folder holds the method's options too, but for those that name a file: what a file holds
        goes into buffers as well.

        Args:
            source: a seeded sample of the source's training images, (n, C, H, W) float32 in [0, 1]
                on the CPU, at most 256.
            target: the same of the target.
        """

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        """Role ``inputs``: map (N, C, H, W) images in [0, 1] to the source's appearance.

        Called without gradients before augmentation and normalisation, in training and at
        prediction. What becomes of an image must depend on it alone, not on the others of the
        batch. The host clips the result to [0, 1], and keeps it as deep as the images are: 8-bit
        images stay 8 bit.

        Args:
            images: on the device of the method.
            domain: ``"target"`` or ``"source"``, whose images most methods leave as they are.

        Returns:
            Finite images of the same shape.
        """
        return images

    def fit_features(self, ctx: FitContext) -> None:
        """Role ``features``: set the buffers that :meth:`align_features` reads.

        Called before the model's first pass, and again whenever the trunk was trained or the class
        weights in force have changed; what is measured of the source counts by these. ``ctx``
        passes the model without any alignment. ``layers`` names ``"trunk"`` to find its width in
        ``task.dims``.
        """

    def align_features(self, features: Tensor, domain: str) -> Tensor:
        """Role ``features``: map (N, D') trunk features of a domain to a common scale.

        What the bottleneck sees in every pass of a whole split and at prediction, row by row: a
        function of the row, the domain and this method's buffers alone.

        Args:
            features: (N, D'), the backbone's pooled output.
            domain: ``"source"`` or ``"target"``.
        """
        return features

    def align_batch(
        self, features: Tensor, domain: str, weights: Tensor, gather: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Role ``features``: what :meth:`align_features` does, of one domain's batch in training.

        Gradients flow back to a trunk that is trained. By default the two are the same.

        Args:
            features: (N, D') of this process.
            domain: ``"source"`` or ``"target"``.
            weights: (N,) importance weights of the rows.
            gather: concatenates over the processes that share the batch.
        """
        return self.align_features(features, domain)

    def norm_statistics(self, ctx: FitContext) -> dict[str, tuple[Tensor, Tensor]]:
        """Role ``norm``: module path to the (mean, variance) that target images are normalised by.

        Asked at any moment at which target images are passed in eval mode, for the model as it
        then is: it depends on ``ctx`` alone. Layers left out keep their own statistics, which are
        the source's. What is measured of the source counts by the class weights in force. ``ctx``
        passes the model without any alignment. Not asked in a frozen run.
        """
        return {}

    def normalises_apart(self) -> bool:
        """Role ``norm``: whether training normalises each domain by its own batch.

        Running statistics are then the source's, whatever ``--bn`` says, unless that is frozen.
        """
        return True

    def on_fit_start(self, ctx: FitContext) -> None:
        """Called once before the first step; not called again after a resume."""

    def on_epoch_end(self, ctx: FitContext) -> None:
        """Called after every epoch, the model in eval mode."""

    def on_fit_end(self, ctx: FitContext) -> None:
        """Called once after the last step; the last chance to set priors."""

    def report(self) -> dict[str, Any]:
        """Return plain numbers and strings for ``run.json`` under the method's name."""
        return {}


__all__ = ["DomainBatch", "FitContext", "Method", "NormLayer", "StepContext", "TaskInfo"]
