"""What a method may ask for between epochs, for a task whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from daptkit.method import DomainBatch, NormLayer, TaskInfo
from daptkit.nn import weighted_mean
from daptkit.testing.worlds import KnownShift

_LAYERS = ("first", "second")
_EPS = 1e-5
_TRAIN = slice(0, None, 2)
"""Images of the source to train on; the others are held out."""

Moments = tuple[Tensor, Tensor]
"""Mean and variance by channel, (C,) each."""


@dataclass
class MadeFitContext:
    """A :class:`daptkit.method.FitContext` whose model is the source's best classifier.

    Args:
        world: the two domains; validation images of the source are drawn like those of training.
        epochs: length of the run.
        epoch: epochs that are done.
        seed: of the run.
        finetune: as ``--finetune``.
        with_source: whether there is a source; without, asking for it raises.
        class_weights: (K,) importance weights in force; ones by default.
        with_norm: whether the model normalises its features: two layers, a ReLU between them,
            whose running statistics are the source's. What the second gives out is what
            :meth:`predict` then returns for every layer.
    """

    world: KnownShift
    epochs: int = 4
    epoch: int = 0
    seed: int = 0
    finetune: str = "full"
    with_source: bool = True
    notes: list[str] = field(default_factory=list)
    logged: dict[str, float] = field(default_factory=dict)
    class_weights: Tensor | None = None
    with_norm: bool = False
    task: TaskInfo = field(init=False)

    def __post_init__(self) -> None:
        """Set what a method is told of the world."""
        self.task = self.world.task

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.task.num_classes

    @property
    def progress(self) -> float:
        """Fraction of the whole run that is done."""
        return self.epoch / self.epochs

    def predict(self, split: str, layers: tuple[str, ...] = ("features",)) -> DomainBatch:
        """Return features and logits of a split; see :class:`daptkit.method.FitContext`.

        Raises:
            LookupError: it is the source's, and there is none.
        """
        if split.startswith("source"):
            self._ensure_source(split)
            rows = slice(int(split == "source_val"), None, 2)
            labels = self.world.source_labels[rows]
            return self._batch(self.world.source_features[rows], labels, layers)
        return self._batch(self.world.target_features, None, layers)

    def source_only(
        self, split: str, layers: tuple[str, ...] = ("features",)
    ) -> DomainBatch | None:
        """Return the same: the model of this context was never adapted."""
        return self.predict(split, layers)

    def images(self, domain: str, limit: int) -> Tensor:
        """Return up to ``limit`` grey images of one colour each, (N, 3, 8, 8) in [0, 1]."""
        if domain == "source":
            self._ensure_source(domain)
        levels = torch.linspace(0.2, 0.8, min(limit, 16))
        return levels[:, None, None, None].expand(-1, 3, 8, 8).clone()

    def norm_layers(self) -> dict[str, NormLayer]:
        """Return the layers of the model, none where it has none."""
        if not self.with_norm:
            return {}
        features = self.world.source_features[_TRAIN]
        own = self._chain(features, torch.ones(len(features)), lambda name, mean, var: (mean, var))
        return {n: NormLayer(mean=mean, var=var, eps=_EPS) for n, (mean, var) in own[1].items()}

    def input_moments(
        self, domain: str, layers: tuple[str, ...] | None = None
    ) -> dict[str, Moments]:
        """Return the moments of what enters each layer; see :class:`daptkit.method.FitContext`."""
        features, weights = self._images_of(domain)
        trunk, moments = self._chain(features, weights, self._own)
        moments = {**moments, "trunk": _moments(trunk, weights)}
        return {name: moments[name] for name in (self.norm_layers() if layers is None else layers)}

    def chained_statistics(
        self,
        domain: str,
        choose: Callable[[str, Tensor, Tensor], Moments],
        limit: int | None = None,
    ) -> dict[str, Moments]:
        """Return what each layer normalises by; see :class:`daptkit.method.FitContext`."""
        if not self.with_norm:
            return {}
        chosen: dict[str, Moments] = {}

        def keep(name: str, mean: Tensor, var: Tensor) -> Moments:
            chosen[name] = choose(name, mean, var)
            return chosen[name]

        self._chain(*self._images_of(domain), keep)
        return chosen

    def normalised(self, features: Tensor, statistics: dict[str, Moments]) -> Tensor:
        """Return the model's pooled output of features (N, D): these, where nothing is normalised.

        Args:
            features: of either domain.
            statistics: what layers normalise by; one that is left out has its own.
        """

        def choose(name: str, mean: Tensor, var: Tensor) -> Moments:
            return statistics[name] if name in statistics else self._own(name, mean, var)

        return self._chain(features, torch.ones(len(features)), choose)[0]

    def note(self, text: str) -> None:
        """Keep the line."""
        self.notes.append(text)

    def log(self, name: str, value: float) -> None:
        """Keep the number."""
        self.logged[name] = float(value)

    def _ensure_source(self, what: str) -> None:
        if not self.with_source:
            raise LookupError(f"{what} is asked for, in a run without source images")

    def _own(self, name: str, mean: Tensor, var: Tensor) -> Moments:
        layer = self.norm_layers()[name]
        return layer.mean, layer.var

    def _images_of(self, domain: str) -> tuple[Tensor, Tensor]:
        """Return features (N, D) and weights (N,) of a domain."""
        if domain == "target":
            return self.world.target_features, torch.ones(len(self.world.target_features))
        self._ensure_source(domain)
        labels = self.world.source_labels[_TRAIN]
        return self.world.source_features[_TRAIN], self._weights(labels)

    def _weights(self, labels: Tensor) -> Tensor:
        if self.class_weights is None:
            return torch.ones(len(labels))
        return self.class_weights[labels]

    def _chain(
        self,
        features: Tensor,
        weights: Tensor,
        choose: Callable[[str, Tensor, Tensor], Moments],
    ) -> tuple[Tensor, dict[str, Moments]]:
        """Return the pooled output, float32, and the moments of what entered each layer."""
        x, entered = features.double(), {}
        for name in _LAYERS if self.with_norm else ():
            entered[name] = _moments(x, weights)
            mean, var = choose(name, *entered[name])
            x = (x - mean) / (var + _EPS).sqrt()
            x = x.relu() if name != _LAYERS[-1] else x
        return x.float(), entered

    def _batch(
        self, features: Tensor, labels: Tensor | None, layers: tuple[str, ...]
    ) -> DomainBatch:
        logits, seen = self.world.logits(features), self.normalised(features, {})
        taps = {**dict.fromkeys(layers, seen), "features": seen, "logits": logits}
        rows = torch.arange(len(features))
        return DomainBatch(
            logits=logits,
            taps=taps,
            labels=labels,
            weights=torch.ones(len(features)) if labels is None else self._weights(labels),
            groups=rows,
            index=rows,
        )


def _moments(x: Tensor, weights: Tensor) -> Moments:
    """Return weighted mean and variance of (N, C) by channel, float64."""
    x, weights = x.double(), weights.double()
    mean = weighted_mean(x, weights)
    return mean, weighted_mean((x - mean).square(), weights)
