"""What methods may ask for between epochs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from daptkit.data import to_float
from daptkit.method import DomainBatch, NormLayer, TaskInfo
from daptkit.train.domains import Domain, Rows
from daptkit.train.inference import SplitPasses
from daptkit.train.moments import Choose


class EpochContext:
    """The host's :class:`daptkit.method.FitContext` for one moment of a run.

    Target batches carry no labels.

    Args:
        passes: passes of the model as it is now.
        twin: passes of the source-only model, or ``None``.
        class_weights: (K,) weights in force.
        epoch, epochs: epochs that are done, and all.
        seed, finetune: options.
        note: takes a line for the user.
    """

    def __init__(
        self,
        *,
        passes: SplitPasses,
        twin: SplitPasses | None,
        class_weights: Tensor,
        epoch: int,
        epochs: int,
        seed: int,
        finetune: str,
        note: Callable[[str], None],
    ) -> None:
        self.task: TaskInfo = passes.data.task
        self.epoch = epoch
        self.epochs = epochs
        self.seed = seed
        self.finetune = finetune
        self.logged: dict[str, float] = {}
        self._passes = passes
        self._twin = twin
        self._class_weights = class_weights.detach().cpu().float()
        self._note = note

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.task.num_classes

    @property
    def progress(self) -> float:
        """Fraction of the whole run that is done."""
        return self.epoch / self.epochs

    def predict(self, split: str, layers: tuple[str, ...] = ("features",)) -> DomainBatch:
        """Run the model over a whole split; see :class:`daptkit.method.FitContext`."""
        return _batch(self._passes, split, layers, self._class_weights)

    def source_only(
        self, split: str, layers: tuple[str, ...] = ("features",)
    ) -> DomainBatch | None:
        """Run the source-only twin over a split; see :class:`daptkit.method.FitContext`."""
        if self._twin is None:
            return None
        return _batch(self._twin, split, layers, torch.ones(self.num_classes))

    def images(self, domain: str, limit: int) -> Tensor:
        """Return up to ``limit`` images spread evenly over the domain, (N, C, H, W) in [0, 1]."""
        found, rows, _ = self._training(domain, limit)
        return to_float(found.images.batch(rows))

    def norm_layers(self) -> dict[str, NormLayer]:
        """Return the model's own statistics; see :class:`daptkit.method.FitContext`."""
        return self._passes.norm_layers()

    def input_moments(
        self, domain: str, layers: tuple[str, ...] | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return moments of what layers are fed; see :class:`daptkit.method.FitContext`."""
        seen, rows, weights = self._training(domain)
        return self._passes.input_moments(
            seen, rows, tuple(self.norm_layers()) if layers is None else layers, weights
        )

    def chained_statistics(
        self, domain: str, choose: Choose, limit: int | None = None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Return statistics chosen layer by layer; see :class:`daptkit.method.FitContext`."""
        seen, rows, weights = self._training(domain, limit)
        return dict(self._passes.chained_statistics(seen, rows, choose, weights))

    def _training(
        self, domain: str, limit: int | None = None
    ) -> tuple[Domain, Rows, Tensor | None]:
        """Return a domain, rows spread evenly over its training images, and their weights."""
        found, rows = self._passes.data.split(
            {"source": "source_train", "target": "target"}[domain]
        )
        if limit is not None:
            rows = rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(int)]
        weights = None if found.labels is None else self._class_weights[found.labels[rows]]
        return found, rows, weights

    def note(self, text: str) -> None:
        """Tell the user one line."""
        self._note(text)

    def log(self, name: str, value: float) -> None:
        """Record a named number for this epoch."""
        self.logged[name] = float(value)


def validation_values(context: EpochContext) -> dict[str, float]:
    """Return loss and accuracy on the source's validation images, and what methods logged."""
    held_out = context.predict("source_val")
    assert held_out.labels is not None
    loss = torch.nn.functional.cross_entropy(held_out.logits, held_out.labels)
    right = held_out.logits.argmax(1) == held_out.labels
    return {
        "source_val_loss": float(loss),
        "source_val_accuracy": float(right.float().mean()),
        **context.logged,
    }


def _batch(
    passes: SplitPasses, split: str, layers: tuple[str, ...], class_weights: Tensor
) -> DomainBatch:
    domain, rows = passes.data.split(split)
    logits, taps = passes.of(split, layers)
    labels = None if domain.labels is None else torch.from_numpy(domain.labels[rows])
    weights = torch.ones(len(rows)) if labels is None else class_weights[labels]
    return DomainBatch(
        logits=logits,
        taps=taps,
        labels=labels,
        weights=weights,
        groups=torch.from_numpy(domain.groups[rows]),
        index=torch.from_numpy(rows),
    )
