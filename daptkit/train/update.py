"""From the losses of a step to new weights: backward pass, clipping and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from daptkit.train.checks import check_gradients, check_losses, check_scale
from daptkit.train.faults import FirstFault, step_unless
from daptkit.train.guard import methods_guard
from daptkit.train.job import Job
from daptkit.train.optim import build_optimizer, set_learning_rate
from daptkit.train.step import StepResult


class Updater:
    """Owns the optimiser and the loss scaler of a job.

    Where a read of the device stalls it, a step reads nothing. Whether its losses and its gradient
    are finite is noted on the device, which also leaves out the update of a step where they are
    not; the notes are read at log steps, at the end of an epoch and before a checkpoint. Elsewhere
    the losses are read at every step.

    Args:
        job: the job; its model and methods are on the device.

    Attributes:
        parts: in how many equal parts a batch is passed.

    Raises:
        PluginError: the groups of a method do not hold each of its parameters once.
    """

    def __init__(self, job: Job) -> None:
        self.optimizer = build_optimizer(
            job.net, job.methods, job.packages, job.config, job.backbone_scale
        )
        self.parts = job.config.grad_accum_steps
        self._scaler = job.precision.new_scaler()
        self._job = job
        self._unchecked = dict(job.methods)
        self._later = job.precision.reads_stall
        self._faults = FirstFault()

    def set_rate(self, factor: float) -> None:
        """Set the learning rate of each group to ``factor`` times its own at the start."""
        set_learning_rate(self.optimizer, self._job.config.lr, factor)

    def clear(self) -> None:
        """Drop the gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, result: StepResult, step: int) -> None:
        """Add the gradient of the summed losses to what is there.

        Args:
            result: losses with their graph.
            step: number of the step, from 0.

        Raises:
            NonFiniteLossError: a loss is NaN or infinite, where that is read at every step.
            PluginError: a method raises in its backward pass.
        """
        total = result.total
        if self._later:
            # Times 1, or NaN where the total is not finite. So a bad loss always makes a bad
            # gradient, whatever its slope: the scaler of float16 sees it too, and so does every
            # process that a gradient is averaged over.
            total = total * (total.detach() * 0.0 + 1.0)
        else:
            check_losses(result.losses, step)
            check_scale(self._scaler, step)
        with methods_guard(self._job.packages, "the backward pass"):
            torch.autograd.backward(self._scaler.scale(total))

    def apply(self, losses: Mapping[str, Tensor], step: int) -> None:
        """Take one step of the optimiser along the gradient that was added up.

        Args:
            losses: those of the step, by name.
            step: number of the step, from 0.

        Raises:
            NonFiniteLossError: at a log step: a loss or a gradient since the last one was NaN or
                infinite.
            PluginError: a method leaves a parameter unused.
        """
        self._check_gradients(losses)
        bad = self._note(losses, step) if self._later else None
        clip = self._job.config.clip_grad
        if clip is not None:
            self._scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters(), clip)
        if bad is None:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        else:
            step_unless(self.optimizer, bad)
        if (step + 1) % self._job.config.log_interval == 0:
            self.check(step)

    def check(self, step: int) -> None:
        """Stop if a number was not finite, up to ``step``; reads a device that reads stall.

        BatchNorm's running statistics have taken in the images of such a step, and of those after
        it: nothing that holds them may be saved or measured. So this comes before every checkpoint,
        and the run ends; it continues from the one before.

        Raises:
            NonFiniteLossError: the first such loss, or the gradient, and its step are named.
        """
        if self._later:
            self._faults.check()
            check_scale(self._scaler, step)

    def _note(self, losses: Mapping[str, Tensor], step: int) -> Tensor | None:
        """Note what is not finite; return whether to leave the update out, or ``None``.

        With a scaler a gradient may overflow: it leaves the update out by itself, and only a streak
        of them is an error.
        """
        if self._scaler.is_enabled():
            self._faults.note(losses, None, step)
            return None
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        # The largest element, since a sum of squares may overflow where no element does.
        finite = torch.isfinite(torch.nn.utils.get_total_norm(gradients, math.inf))
        self._faults.note(losses, finite, step)
        return finite.logical_not()

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _check_gradients(self, losses: Mapping[str, Tensor]) -> None:
        """Check each method at the first step at which it returns a loss."""
        active = {key.split("/")[0] for key in losses if "/" in key}
        for name in sorted(active & self._unchecked.keys()):
            check_gradients(name, self._unchecked.pop(name), self._job.packages[name])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "parts": self.parts,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as a checkpoint left it; the optimiser's part is loaded with the model's."""
        self._scaler.load_state_dict(state["scaler"])
        self.parts = int(state["parts"])
