"""What a method may ask for between epochs, for a task whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from daptkit.method import DomainBatch, TaskInfo
from daptkit.testing.worlds import KnownShift


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
    """

    world: KnownShift
    epochs: int = 4
    epoch: int = 0
    seed: int = 0
    finetune: str = "full"
    with_source: bool = True
    notes: list[str] = field(default_factory=list)
    logged: dict[str, float] = field(default_factory=dict)

    @property
    def task(self) -> TaskInfo:
        """The task."""
        return self.world.task

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
            rows, labels = self._part(split)
            return self._batch(self.world.source_features[rows], labels[rows], layers)
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

    def note(self, text: str) -> None:
        """Keep the line."""
        self.notes.append(text)

    def log(self, name: str, value: float) -> None:
        """Keep the number."""
        self.logged[name] = float(value)

    def _ensure_source(self, what: str) -> None:
        if not self.with_source:
            raise LookupError(f"{what} is asked for, in a run without source images")

    def _part(self, split: str) -> tuple[slice, Tensor]:
        """Return the rows of a source split; every second image is held out."""
        labels = self.world.source_labels
        return slice(int(split == "source_val"), None, 2), labels

    def _batch(
        self, features: Tensor, labels: Tensor | None, layers: tuple[str, ...]
    ) -> DomainBatch:
        logits = self.world.logits(features)
        taps = {**dict.fromkeys(layers, features), "features": features, "logits": logits}
        rows = torch.arange(len(features))
        return DomainBatch(
            logits=logits,
            taps=taps,
            labels=labels,
            weights=torch.ones(len(features)),
            groups=rows,
            index=rows,
        )
