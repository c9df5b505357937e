"""The training loop, the same for every method."""

from __future__ import annotations

import math
import signal
import time

import torch

from daptkit.data import steps_per_epoch
from daptkit.errors import NonFiniteLossError, PluginError, Terminated
from daptkit.host import emit_event
from daptkit.plugin import Event
from daptkit.run import MetricsLog
from daptkit.train.checkpoint import (
    load_checkpoint,
    load_module_state,
    module_state,
    save_checkpoint,
)
from daptkit.train.context import EpochContext
from daptkit.train.device import derive_seed
from daptkit.train.domains import training_batches
from daptkit.train.guard import plugin_guard
from daptkit.train.job import FitResult, Job
from daptkit.train.optim import build_optimizer, schedule_factor, set_learning_rate
from daptkit.train.roles import Roles
from daptkit.train.signals import StopRequest, stop_on_signals
from daptkit.train.step import Step, StepResult
from daptkit.train.window import Window

MIN_EPOCHS, MIN_STEPS = 4, 500
"""Length of a run that does not say ``--epochs``: whichever of the two is longer."""


class Trainer:
    """Runs one job from its last checkpoint, or from the start, to the end."""

    def __init__(self, job: Job) -> None:
        self.job = job
        config, data = job.config, job.data
        self.device = job.precision.device
        self.module = Step(job.net, job.methods, job.packages).to(self.device)
        self.optimizer = build_optimizer(job.net, job.methods, config, job.backbone_scale)
        self.roles = Roles(job.owners, job.methods, job.packages, data.task)
        self.per_epoch = steps_per_epoch(
            len(data.train_rows), len(data.target_rows), config.batch_size
        )
        self.epochs = config.epochs or max(MIN_EPOCHS, math.ceil(MIN_STEPS / self.per_epoch))
        self.total = self.per_epoch * self.epochs
        self.window = Window()
        self.notes: list[str] = []
        self.step = 0
        self.metrics_position = 0
        self._restore()
        self.metrics = MetricsLog(job.folder.metrics, self.metrics_position)

    def run(self) -> FitResult:
        """Train to the end.

        Raises:
            NonFiniteLossError: a loss became NaN or infinite.
            PluginError: a method broke the contract.
            Terminated: SIGTERM; a checkpoint was written.
        """
        began = time.monotonic()
        reporter = self.job.reporter
        try:
            with stop_on_signals() as request:
                self._call("on_fit_start") if self.step == 0 else None
                self._emit(Event(kind="fit_start", step=self.step))
                reporter.start(self.job.label, self.total, self.step)
                while self.step < self.total:
                    self._train_epoch(request)
                    self._end_epoch()
                    self._save()
                    self._obey(request)
                self._call("on_fit_end")
        finally:
            reporter.stop()
            self.metrics.close()
        self._emit(Event(kind="fit_end", step=self.step))
        return FitResult(
            class_weights=self.roles.class_weights(),
            target_prior=self.roles.target_prior(),
            reports={name: method.report() for name, method in self.job.methods.items()},
            notes=tuple(self.notes),
            steps=self.total,
            seconds=time.monotonic() - began,
        )

    def _train_epoch(self, request: StopRequest) -> None:
        job = self.job
        self.module.train()
        class_weights = self.roles.class_weights().to(self.device)
        prior = self.roles.target_prior()
        target_prior = None if prior is None else prior.to(self.device)
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
        )
        for source, target in batches:
            # Dropout and methods draw from a stream that depends on seed and step alone, so a
            # resumed run continues bit for bit.
            torch.manual_seed(derive_seed(job.config.seed, self.step, 2))
            generator.manual_seed(derive_seed(job.config.seed, self.step, 3))
            progress = self.step / self.total
            factor = schedule_factor(job.config.sched, progress)
            set_learning_rate(self.optimizer, job.config.lr, factor)
            with job.precision.autocast():
                result = self.module(
                    source,
                    target,
                    progress=progress,
                    step=self.step,
                    class_weights=class_weights,
                    target_prior=target_prior,
                    from_trunk=job.data.from_trunk,
                    generator=generator,
                )
            self._update(result)
            self._log(result, progress, factor)
            self.step += 1
            if request.signal is not None and self.step < end:
                self._save()
                self._obey(request)

    def _update(self, result: StepResult) -> None:
        logging = (self.step + 1) % self.job.config.log_interval == 0
        # A read from the GPU stalls it, so there losses are checked at log steps only; no
        # checkpoint is written between a bad step and its check.
        if self.device.type == "cpu" or logging:
            self._check_finite(result)
        scaler = self.job.precision.scaler
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(scaler.scale(result.total))
        if self.step == 0:
            self._check_gradients(result)
        if self.job.config.clip_grad is not None:
            scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.job.config.clip_grad)
        scaler.step(self.optimizer)
        scaler.update()

    def _check_finite(self, result: StepResult) -> None:
        bad = [name for name, value in result.losses.items() if not bool(torch.isfinite(value))]
        if bad:
            raise NonFiniteLossError(
                f"loss '{bad[0]}' is not finite at step {self.step} (epoch"
                f" {self.step // self.per_epoch + 1}); the last good state is kept in"
                " checkpoints/. Try a smaller --lr, --clip-grad 1, or a smaller weight of the"
                " method."
            )

    def _check_gradients(self, result: StepResult) -> None:
        for name, method in self.job.methods.items():
            if not any(key.startswith(f"{name}/") for key in result.losses):
                continue
            unused = [
                key for key, p in method.named_parameters() if p.requires_grad and p.grad is None
            ]
            if unused:
                raise PluginError(
                    f"method '{name}' ({self.job.packages[name]}) has parameters that its losses"
                    f" do not use: {', '.join(unused)}."
                )

    def _log(self, result: StepResult, progress: float, factor: float) -> None:
        self.window.add({**result.losses, **result.logs})
        if (self.step + 1) % self.job.config.log_interval:
            self.job.reporter.advance(self.step + 1)
            return
        values = self.window.take()
        rate = self.job.config.lr * factor
        self.metrics.write(
            {
                "kind": "step",
                "step": self.step + 1,
                "epoch": self.step // self.per_epoch + 1,
                "progress": progress,
                "lr": rate,
                "values": values,
            }
        )
        self.job.reporter.update(self.step + 1, values)
        self._emit(Event(kind="log", step=self.step + 1, values={"lr": rate, **values}))

    def _end_epoch(self) -> None:
        context = self._call("on_epoch_end")
        held_out = context.predict("source_val")
        assert held_out.labels is not None
        values = {
            "source_val_loss": float(
                torch.nn.functional.cross_entropy(held_out.logits, held_out.labels)
            ),
            "source_val_accuracy": float(
                (held_out.logits.argmax(1) == held_out.labels).float().mean()
            ),
            **context.logged,
        }
        self.metrics.write(
            {"kind": "epoch", "step": self.step, "epoch": context.epoch, "values": values}
        )
        self._emit(Event(kind="epoch_end", step=self.step, values=values))

    def _call(self, hook: str) -> EpochContext:
        context = EpochContext(
            net=self.job.net,
            data=self.job.data,
            precision=self.job.precision,
            class_weights=self.roles.class_weights(),
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
        if self.job.events:
            emit_event(event)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.job.reporter.line(text)

    def _save(self) -> None:
        save_checkpoint(
            self.job.folder.checkpoints,
            {
                "step": self.step,
                "module": module_state(self.module, self.job.data.from_trunk),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.job.precision.scaler.state_dict(),
                "metrics_position": self.metrics.position,
                "window": self.window.state(),
                "notes": self.notes,
            },
        )

    def _restore(self) -> None:
        state, damaged = load_checkpoint(self.job.folder.checkpoints)
        if damaged:
            self.job.reporter.line(f"checkpoint {damaged[0]} is damaged; the one before is used.")
        if state is None:
            return
        load_module_state(self.module, state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.job.precision.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])
        self.metrics_position = int(state["metrics_position"])
        self.window = Window.from_state(state["window"], self.device)
        self.notes = list(state["notes"])

    def _obey(self, request: StopRequest) -> None:
        if request.signal == signal.SIGTERM:
            raise Terminated("terminated; a checkpoint was written. Continue with --resume.")
        if request.signal is not None:
            raise KeyboardInterrupt
