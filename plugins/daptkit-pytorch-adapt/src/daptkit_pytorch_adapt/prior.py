"""What a step knows of the target's class frequencies, for losses that else want even ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from daptkit.method import DomainBatch, Method, StepContext, TaskInfo

FLOOR = 1e-6
"""Least frequency of a class in a ratio: one that is never expected still has a finite logit."""


def expected_prior(ctx: StepContext, source_prior: Tensor) -> Tensor:
    """Return the target's class frequencies as far as the owner of a role knows them.

    q of ``target_prior``; without it w p / sum(w p) of ``class_weights`` w and the source prior p;
    even ones where those weights are all 1, which is what a run without an owner has.

    Args:
        ctx: of the step.
        source_prior: p (K,), on the device of the step.

    Returns:
        (K,), sums to 1.
    """
    if ctx.target_prior is not None:
        return ctx.target_prior / ctx.target_prior.sum()
    weights = ctx.class_weights
    moved = source_prior * weights
    even = torch.full_like(moved, 1.0 / len(moved))
    # Decided on the device: reading the weights back would make every step wait for it.
    return torch.where((weights == 1.0).all(), even, moved / moved.sum())


def target_logits(logits: Tensor, ctx: StepContext, source_prior: Tensor) -> Tensor:
    """Return logits of the posterior under the target prior.

    z + log q - log(w p): w p are the class frequencies that the classification loss trains under,
    q those of the owner of ``target_prior``; without one the logits as they are. It is the
    correction that the host makes at prediction, made here for the loss alone.

    Args:
        logits: (N, K), uncorrected.
        ctx: of the step.
        source_prior: p (K,), on the device of the step.
    """
    if ctx.target_prior is None:
        return logits
    shift = _share(ctx.target_prior).log() - _share(source_prior * ctx.class_weights).log()
    return logits + shift.to(logits.dtype)


def _share(mass: Tensor) -> Tensor:
    return (mass / mass.sum()).clamp_min(FLOOR)


class PriorAware(Method):
    """A method whose loss is one of the target's predictions as they are under its prior.

    Args:
        options: has ``prior``: whether what other methods of the run estimate is used.
        task: gives the source prior.
    """

    layers = ("features", "logits")
    source_prior: Tensor

    def __init__(self, options: Any, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.register_buffer("source_prior", task.source_prior.float().clone(), persistent=False)

    def seen(self, target: DomainBatch, ctx: StepContext) -> tuple[Tensor, Tensor | None]:
        """Return logits (N, K) of all processes and the prior (K,), ``None`` if not asked for."""
        logits = ctx.gather(target.logits)
        if not self.options.prior:
            return logits, None
        corrected = target_logits(logits.float(), ctx, self.source_prior)
        return corrected, expected_prior(ctx, self.source_prior)
