"""Scores of every epoch of a training, and the models of those that may be delivered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from daptkit.assess.scores import ScoreInputs, score_inputs
from daptkit.run import writing
from daptkit.shift import fit_rule
from daptkit.shift.divergence import subsample
from daptkit.train.checkpoint import read_checkpoint, write_checkpoint
from daptkit.train.device import derive_seed
from daptkit.train.domains import TaskData
from daptkit.train.inference import SplitPasses, as_numpy
from daptkit.train.job import Job
from daptkit.train.selection import Choice, Selection

SAMPLE = 1000
"""Images of a site that an epoch is scored on at most: the same ones in every epoch."""

KEY = "score/"
"""What the names of scores begin with in ``metrics.jsonl``."""

_LAYERS = ("features",)
_SAMPLE_STREAM = 5
"""Tells the seed of the sample from the others that are derived."""


class EpochInputs:
    """What scores of a model in training are computed from.

    Args:
        data: both domains.
        seed: of the sample.
    """

    def __init__(self, data: TaskData, seed: int) -> None:
        rng = np.random.default_rng(derive_seed(seed, _SAMPLE_STREAM))
        self._data, self._seed = data, seed
        self._source = subsample(len(data.val_rows), SAMPLE, rng)
        self._target = subsample(len(data.target_rows), SAMPLE, rng)

    def of(self, passes: SplitPasses, class_weights: Tensor) -> ScoreInputs | None:
        """Return the inputs by the model as it is; ``None`` where its outputs are not finite.

        Probabilities are calibrated on the held-out source images as those of a delivered model
        are. Every process must call it.

        Args:
            passes: of the model.
            class_weights: (K,) weights in force.
        """
        data = self._data
        source_logits, source_taps = passes.some("source_val", self._source, _LAYERS)
        target_logits, target_taps = passes.some("target", self._target, _LAYERS)
        found = (source_logits, target_logits, source_taps["features"], target_taps["features"])
        if not all(bool(torch.isfinite(values).all()) for values in found):
            return None
        z_s, z_t, x_s, x_t = (as_numpy(values) for values in found)
        assert data.source.labels is not None
        source = data.val_rows[self._source]
        labels, weights = data.source.labels[source], as_numpy(class_weights)
        rule = fit_rule(z_s, labels, weights, None, "map", data.task.classes)
        return score_inputs(
            np.exp(rule.calibration.log_posterior(z_t)),
            np.exp(rule.calibration.log_posterior(z_s)),
            labels,
            source_groups=data.source.groups[source],
            target_groups=data.target.groups[data.target_rows[self._target]],
            source_features=x_s,
            target_features=x_t,
            seed=self._seed,
        )


class EpochScores:
    """Scores the epochs of one training and keeps the models that may be delivered.

    Args:
        job: what is trained. Without a folder, as in the folds of cross-fitting, nothing is scored.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._world = job, job.world
        self._inputs = EpochInputs(job.data, job.config.seed)
        self._selection = None if job.rule is None else Selection(job.rule)
        self._needed: list[set[int]] = []
        self.asked: dict[str, tuple[str, ...]] = {}
        if job.folder is not None:
            self.asked = {"source_val": _LAYERS, "target": _LAYERS}

    @property
    def selects(self) -> bool:
        """Whether an earlier epoch than the last may be delivered."""
        return self._selection is not None

    def after_epoch(
        self, epoch: int, passes: SplitPasses, class_weights: Tensor
    ) -> dict[str, float]:
        """Return the scores of the model as it is by their names in the metrics; all call it."""
        if self._job.folder is None:
            return {}
        inputs = self._inputs.of(passes, class_weights)
        return self._world.first(lambda: self._score(epoch, inputs))

    def _score(self, epoch: int, inputs: ScoreInputs | None) -> dict[str, float]:
        scores = self._job.scores
        values = (
            dict.fromkeys(scores.names, float("nan")) if inputs is None else scores.values(inputs)
        )
        if self._selection is not None:
            self._selection.add(epoch, values, inputs)
        return {KEY + name: value for name, value in values.items()}

    def keep(self, epoch: int, state: dict[str, Any]) -> None:
        """Keep the model of an epoch where it may still be chosen; the first process does."""
        if self._selection is not None and epoch in self._selection.needed():
            write_checkpoint(self._path(epoch), state)

    def tidy(self) -> None:
        """Remove models that neither this checkpoint nor the one before it can choose."""
        if self._selection is None:
            return
        self._needed = [*self._needed[-1:], self._selection.needed()]
        self._remove_all_but(set().union(*self._needed))

    def take(self) -> tuple[Choice, dict[str, Any] | None] | None:
        """Choose an epoch and return the state to deliver; the first process does.

        Returns:
            the choice, and the state of the epoch, ``None`` for the last one, which is at hand;
            ``None`` where the last epoch is delivered whatever the scores say.
        """
        if self._selection is None:
            return None
        lost: frozenset[int] = frozenset()
        while True:
            choice = self._selection.choose(lost)
            state = None if choice.epoch == choice.last else self._read(choice.epoch)
            if state is not None or choice.epoch == choice.last:
                self._remove_all_but({choice.epoch})
                return choice, state
            lost |= {choice.epoch}

    def state(self) -> list[dict[str, Any]] | None:
        """Return what a checkpoint stores."""
        return None if self._selection is None else self._selection.state()

    def load_state(self, state: list[dict[str, Any]] | None) -> None:
        """Go on as a checkpoint left it."""
        if self._selection is not None and state is not None:
            self._selection.load_state(state)
            self._needed = [self._selection.needed()]

    def _read(self, epoch: int) -> dict[str, Any] | None:
        path = self._path(epoch)
        state = read_checkpoint(path) if path.exists() else None
        if state is None or not isinstance(state, Mapping) or state.get("epoch") != epoch:
            self._job.reporter.line(
                f"the kept model of epoch {epoch} is missing or damaged; the next best is taken."
            )
            return None
        return state

    def _remove_all_but(self, epochs: set[int]) -> None:
        kept = {self._path(epoch) for epoch in epochs}
        folder = self._folder
        with writing(folder):
            # A killed process leaves unfinished ones under hidden names.
            for path in [*folder.glob("epoch-*.ckpt"), *folder.glob(".epoch-*")]:
                if path not in kept:
                    path.unlink(missing_ok=True)

    @property
    def _folder(self) -> Path:
        assert self._job.folder is not None
        return self._job.folder.checkpoints

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch:05d}.ckpt"
