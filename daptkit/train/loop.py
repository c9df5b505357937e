"""The training loop, the same for every method."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from daptkit.data import steps_per_epoch
from daptkit.errors import DaptkitError
from daptkit.host import emit_event
from daptkit.plugin import Event
from daptkit.run import MetricsLog, RunFolder
from daptkit.train.checkpoint import load_checkpoint, load_states, module_state, save_checkpoint
from daptkit.train.checks import check_weights
from daptkit.train.compiling import training_backbone
from daptkit.train.context import EpochContext, validation_values
from daptkit.train.domains import DomainInputs, training_batches
from daptkit.train.gradual import Gradual
from daptkit.train.guard import plugin_guard
from daptkit.train.inference import TrainingPasses
from daptkit.train.job import FitResult, Job
from daptkit.train.memory import MemoryFit
from daptkit.train.optim import schedule_factor
from daptkit.train.parallel import gather_of, parallel
from daptkit.train.report import method_reports
from daptkit.train.roles import Roles
from daptkit.train.signals import StopRequest, obey, stop_on_signals
from daptkit.train.step import Step
from daptkit.train.update import Updater
from daptkit.train.versions import version_changes
from daptkit.train.window import Window

MIN_EPOCHS, MIN_STEPS = 4, 500
"""Length of a run that does not say ``--epochs``: whichever of the two is longer."""


class Trainer:
    """Runs one job from its last checkpoint, or from the start, to the end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        config, data = job.config, job.data
        self.device = job.precision.device
        self.world = job.world
        self.module = Step(
            job.net,
            job.methods,
            job.packages,
            split=config.bn == "split",
            gather=gather_of(job.world),
            backbone=training_backbone(job),
        )
        self.module.to(self.device)
        self.gradual = Gradual(job.net) if config.finetune == "gradual" else None
        self.updater = Updater(job)
        self.pass_batch = MemoryFit(job, self.updater, self._in_parts).run
        self.roles = Roles(job.owners, job.methods, job.packages, data.task)
        self.per_epoch = steps_per_epoch(
            len(data.train_rows), len(data.target_rows), config.batch_size
        )
        self.epochs = config.epochs or max(MIN_EPOCHS, math.ceil(MIN_STEPS / self.per_epoch))
        self.total = self.per_epoch * self.epochs
        self.window = Window()
        self.notes: list[str] = []
        self.step = 0
        # In force: what the last step was trained under, whatever their owner has changed since.
        self.class_weights = torch.ones(data.task.num_classes)
        self.target_prior: torch.Tensor | None = None
        self._passes = TrainingPasses(job.net, data, job.precision, job.world)
        self.metrics: MetricsLog | None = None
        self._continue()
        self._parallel = parallel(self.module, self.world)

    def run(self) -> FitResult:
        """Train to the end.

        Raises:
            NonFiniteLossError: a loss became NaN or infinite.
            PluginError: a method broke the contract.
            Terminated: SIGTERM; a checkpoint was written.
        """
        reporter = self.job.reporter
        try:
            with stop_on_signals() as request:
                if self.step == 0:
                    self._call("on_fit_start")
                self._emit(Event(kind="fit_start", step=self.step))
                reporter.start(self.job.label, self.total, self.step)
                while self.step < self.total:
                    self._train_epoch(request)
                    self._end_epoch()
                    self._save()
                    obey(self.world.agreed(request.signal))
                self._call("on_fit_end")
                obey(self.world.agreed(request.signal))
        finally:
            reporter.stop()
            if self.metrics is not None:
                self.metrics.close()
        self._emit(Event(kind="fit_end", step=self.step))
        return FitResult(
            class_weights=self.class_weights,
            target_prior=self.roles.target_prior(),
            target_prior_interval=self.roles.target_prior_interval(),
            reports=method_reports(self.job.methods, self.job.packages),
            notes=tuple(self.notes),
            parts=self.updater.parts,
            passes=self._passes.now(delivered=True),
        )

    def _train_epoch(self, request: StopRequest) -> None:
        job = self.job
        self._passes.forget()
        self.module.train()
        if self.step % self.per_epoch == 0:
            self.class_weights, self.target_prior = self.world.same(
                (self.roles.class_weights(), self.roles.target_prior())
            )
        weights = self.class_weights.to(self.device)
        prior = None if self.target_prior is None else self.target_prior.to(self.device)
        generator = torch.Generator(self.device)
        end = (self.step // self.per_epoch + 1) * self.per_epoch
        batches = training_batches(
            job.data,
            start=self.step,
            stop=end,
            batch_size=job.config.batch_size,
            seed=job.config.seed,
            device=self.device,
            with_target=bool(job.methods),
            rank=self.world.rank,
            size=self.world.size,
            parts=self.updater.parts,
        )
        for source, target in batches:
            self._train_step(source, target, weights, prior, generator)
            stop = self.world.agreed(request.signal)
            if stop is not None and self.step < end:
                self._save()
                obey(stop)
        # What follows an epoch measures the model.
        self.updater.check(self.step)

    def _train_step(
        self,
        source: DomainInputs,
        target: DomainInputs | None,
        class_weights: torch.Tensor,
        target_prior: torch.Tensor | None,
        generator: torch.Generator,
    ) -> None:
        config = self.job.config
        progress = self.step / self.total
        factor = schedule_factor(config.sched, progress)
        self.updater.set_rate(factor)
        result = self.pass_batch(
            self._parallel,
            source,
            target,
            step=self.step,
            generator=generator,
            progress=progress,
            class_weights=class_weights,
            target_prior=target_prior,
            from_trunk=self.job.data.from_trunk,
        )
        self.updater.apply(result.losses, self.step)
        self.window.add(result.losses, result.logs)
        self.step += 1
        if self._logs_now:
            self._log(progress, config.lr * factor)
        else:
            self.job.reporter.advance(self.step)

    @property
    def _logs_now(self) -> bool:
        return self.step % self.job.config.log_interval == 0

    def _log(self, progress: float, rate: float) -> None:
        values = self.window.take()
        self._write(
            {
                "kind": "step",
                "step": self.step,
                "epoch": (self.step - 1) // self.per_epoch + 1,
                "progress": progress,
                "lr": rate,
                "values": values,
                "losses": [name for name in values if name in self.window.losses],
            }
        )
        self.job.reporter.update(self.step, values)
        self._emit(Event(kind="log", step=self.step, values={"lr": rate, **values}))

    def _end_epoch(self) -> None:
        context = self._call("on_epoch_end")
        values = self.world.same(validation_values(context))
        self._write({"kind": "epoch", "step": self.step, "epoch": context.epoch, "values": values})
        self._emit(Event(kind="epoch_end", step=self.step, values=values))
        if self.gradual is not None and self.step < self.total:
            self._unfreeze(self.gradual, context.epoch, values["source_val_loss"])

    def _unfreeze(self, gradual: Gradual, epoch: int, loss: float) -> None:
        changed = gradual.after_epoch(loss)
        if changed is not None:
            self.module.backbone = training_backbone(self.job)
            # What is wrapped knows only the parameters that were trained when it was.
            self._parallel = self.module
            self._parallel = parallel(self.module, self.world)
            self._write(changed.entry(self.step, epoch))
            self.job.reporter.line(f"{self.job.label}: {changed.sentence(epoch)}")
            self._emit(
                Event(kind="unfreeze", step=self.step, values={"trained_stages": changed.trained})
            )

    def _call(self, hook: str) -> EpochContext:
        self.module.eval()
        context = EpochContext(
            passes=self._passes.now(delivered=self.step == self.total),
            twin=self.job.twin,
            class_weights=self.class_weights,
            epoch=self.step // self.per_epoch,
            epochs=self.epochs,
            seed=self.job.config.seed,
            finetune=self.job.config.finetune,
            note=self._note,
        )
        for name, method in self.job.methods.items():
            with plugin_guard(name, self.job.packages[name], f"{hook}()"):
                getattr(method, hook)(context)
        return context

    def _emit(self, event: Event) -> None:
        if self.job.events and self.world.leads:
            emit_event(event)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.job.reporter.line(text)

    def _in_parts(self, text: str, parts: int) -> None:
        self._note(text)
        self._write({"kind": "parts", "step": self.step, "parts": parts})

    def _write(self, entry: dict[str, object]) -> None:
        if self.metrics is not None:
            self.metrics.write(entry)

    def _save(self) -> None:
        self.updater.check(self.step)
        check_weights(self.module, self.step)
        if self.job.folder is not None:
            self.world.first(self._write_checkpoint)

    def _write_checkpoint(self) -> None:
        assert self.job.folder is not None
        assert self.metrics is not None
        save_checkpoint(
            self.job.folder.checkpoints,
            {
                "identity": self.job.identity,
                "processes": self.world.size,
                "packages": dict(self.job.packages),
                "step": self.step,
                "module": module_state(self.module, self.job.data.from_trunk),
                **self.updater.state(),
                "class_weights": self.class_weights,
                "target_prior": self.target_prior,
                "metrics_position": self.metrics.position,
                "window": self.window.state(),
                "notes": self.notes,
                "gradual": None if self.gradual is None else self.gradual.state(),
            },
        )

    def _continue(self) -> None:
        """Load the last checkpoint, if there is one, and open the metrics as it left them."""
        folder = self.job.folder
        if folder is None:
            return
        state, damaged = self.world.first(lambda: load_checkpoint(folder.checkpoints))
        if damaged:
            self.job.reporter.line(f"checkpoint {damaged[0]} is damaged; the one before is used.")
        if state is not None:
            self._load(state)
        self.world.first(lambda: self._open_metrics(folder, state))

    def _open_metrics(self, folder: RunFolder, state: Mapping[str, Any] | None) -> None:
        position = 0 if state is None else int(state["metrics_position"])
        self.metrics = MetricsLog(folder.metrics, position)

    def _load(self, state: dict[str, Any]) -> None:
        if state.get("identity") != self.job.identity:
            raise DaptkitError(
                "--resume: the images or labels have changed since the run was started; start"
                " again in a new --out."
            )
        load_states(self.module, self.updater.optimizer, state, self.job.data.from_trunk)
        self.updater.load_state(state)
        self.class_weights, self.target_prior = state["class_weights"], state["target_prior"]
        self.step = int(state["step"])
        self.window = Window.from_state(state["window"], self.device)
        self.notes = list(state["notes"])
        if self.gradual is not None:
            self.gradual.load_state(state["gradual"])
        for text in version_changes(state.get("packages", {}), self.job.packages):
            self.job.reporter.line(text)
        if state["processes"] != self.world.size:
            self.job.reporter.line(
                f"{self.job.label}: continued by {self.world.size} processes instead of"
                f" {state['processes']}; sums are rounded in another order, and dropout draws anew"
            )
