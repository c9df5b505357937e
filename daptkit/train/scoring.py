"""Scores of every epoch of a training, and the models of those that may be delivered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from daptkit.assess.scores import ScoreInputs, score_inputs
from daptkit.config import AdaptConfig
from daptkit.run import writing
from daptkit.shift import ShiftDiagnosis, fit_rule
from daptkit.shift.divergence import subsample
from daptkit.train.checkpoint import (
    load_module,
    module_state,
    read_checkpoint,
    write_checkpoint,
)
from daptkit.train.device import derive_seed
from daptkit.train.domains import TaskData
from daptkit.train.inference import SplitPasses, as_numpy
from daptkit.train.job import FitResult, Job
from daptkit.train.scoreset import AUTO, ScoreSet
from daptkit.train.selection import Choice, Rule, Selection, trusted_prior

SAMPLE = 1000
"""Images of a site that an epoch is scored on at most: the same ones in every epoch."""

KEY = "score/"
"""What the names of scores begin with in ``metrics.jsonl``."""

InForce = tuple[Tensor, Tensor | None]
"""Class weights and target prior that an epoch was trained under."""

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


def selection_rule(
    config: AdaptConfig,
    data: TaskData,
    twin: FitResult,
    found: ShiftDiagnosis,
    scores: ScoreSet,
    *,
    raises_confidence: bool,
) -> Rule:
    """Return what the epoch to deliver is chosen by; every process must call it.

    Args:
        config: options; ``select`` is not ``"last"``.
        data: both domains.
        twin: the source-only model.
        found: diagnosis of the shift.
        scores: of the run.
        raises_confidence: whether a method of the run declares that its loss raises confidence.
    """
    reference = EpochInputs(data, config.seed).of(twin.passes, twin.class_weights)
    assert reference is not None, "a model that is delivered has finite outputs"
    return Rule(
        name=config.select,
        higher_is_better=config.select == AUTO or scores.higher_is_better(config.select),
        kind=found.kind,
        prior=trusted_prior(found),
        reference=reference,
        raises_confidence=raises_confidence,
    )


class EpochScores:
    """Scores the epochs of one training and keeps the models that may be delivered.

    Args:
        job: what is trained. Without a folder, as in the folds of cross-fitting, nothing is scored.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._world = job, job.world
        self._frozen = job.data.from_trunk
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
        self,
        epoch: int,
        passes: SplitPasses,
        module: nn.Module,
        *,
        in_force: InForce,
        last: bool,
    ) -> dict[str, float]:
        """Score an epoch, and keep its model where it may yet be delivered; all processes call it.

        Args:
            epoch: its number, from 1.
            passes: of the model as it is.
            module: model and methods.
            in_force: class weights and target prior that the epoch was trained under.
            last: whether it is the last one, whose model is at hand when one is chosen.

        Returns:
            the scores by their names in the metrics.
        """
        if self._job.folder is None:
            return {}
        inputs = self._inputs.of(passes, in_force[0])

        def score() -> dict[str, float]:
            values = self._score(epoch, inputs)
            if not last and self._selection is not None and epoch in self._selection.needed():
                state = {"epoch": epoch, "module": module_state(module, self._frozen)}
                write_checkpoint(self._path(epoch), {**state, "in_force": in_force})
            return values

        return self._world.first(score)

    def _score(self, epoch: int, inputs: ScoreInputs | None) -> dict[str, float]:
        scores = self._job.scores
        values = (
            dict.fromkeys(scores.names, float("nan")) if inputs is None else scores.values(inputs)
        )
        if self._selection is not None:
            self._selection.add(epoch, values, inputs)
        return {KEY + name: value for name, value in values.items()}

    def tidy(self) -> None:
        """Remove models that neither this checkpoint nor the one before it can choose."""
        if self._selection is not None:
            self._world.first(self._tidy)

    def _tidy(self) -> None:
        assert self._selection is not None
        self._needed = [*self._needed[-1:], self._selection.needed()]
        self._remove_all_but(set().union(*self._needed))

    def bring_back(self, module: nn.Module) -> tuple[Choice | None, InForce | None]:
        """Choose an epoch and load its model; all processes call it.

        Args:
            module: model and methods as the last epoch left them.

        Returns:
            the choice, and what the chosen epoch was trained under; ``None`` for a choice where the
            last epoch is delivered whatever the scores say, and in its second place for the last.
        """
        if self._selection is None:
            return None, None
        choice, state = self._world.first(self._take)
        if state is None:
            return choice, None
        load_module(module, state["module"], self._frozen)
        return choice, state["in_force"]

    def _take(self) -> tuple[Choice, dict[str, Any] | None]:
        assert self._selection is not None
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
