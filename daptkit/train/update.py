"""From the losses of a step to new weights: backward pass, clipping and the optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from daptkit.train.checks import check_gradients, check_losses, check_scale
from daptkit.train.guard import methods_guard
from daptkit.train.job import Job
from daptkit.train.optim import build_optimizer, set_learning_rate
from daptkit.train.step import StepResult


class Updater:
    """Owns the optimiser and the loss scaler of a job.

    Args:
        job: the job; its model and methods are on the device.

    Raises:
        PluginError: the groups of a method do not hold each of its parameters once.
    """

    def __init__(self, job: Job) -> None:
        self.optimizer = build_optimizer(
            job.net, job.methods, job.packages, job.config, job.backbone_scale
        )
        self._scaler = job.precision.new_scaler()
        self._job = job
        self._unchecked = dict(job.methods)

    def set_rate(self, factor: float) -> None:
        """Set the learning rate of each group to ``factor`` times its own at the start."""
        set_learning_rate(self.optimizer, self._job.config.lr, factor)

    def apply(self, result: StepResult, step: int) -> None:
        """Take one step of the optimiser along the gradient of the summed losses.

        Args:
            result: losses of the step, with their graph.
            step: number of the step, from 0.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite.
            PluginError: a method raises in its backward pass, or leaves a parameter unused.
        """
        config = self._job.config
        # A read from a GPU stalls it, so there losses are checked at log steps only; before
        # anything is saved, the weights are checked as well.
        if self._job.precision.device.type == "cpu" or (step + 1) % config.log_interval == 0:
            check_losses(result.losses, step)
            check_scale(self._scaler, step)
        self.optimizer.zero_grad(set_to_none=True)
        with methods_guard(self._job.packages, "the backward pass"):
            torch.autograd.backward(self._scaler.scale(result.total))
        self._check_gradients(result)
        if config.clip_grad is not None:
            self._scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, config.clip_grad)
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _check_gradients(self, result: StepResult) -> None:
        """Check each method at the first step at which it returns a loss."""
        active = {key.split("/")[0] for key in result.losses if "/" in key}
        for name in sorted(active & self._unchecked.keys()):
            check_gradients(name, self._unchecked.pop(name), self._job.packages[name])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as a checkpoint left it; the optimiser's part is loaded with the model's."""
        self._scaler.load_state_dict(state["scaler"])
