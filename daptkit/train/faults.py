"""Numbers that are not finite, noted on the device and read now and then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from daptkit.train.checks import lost_gradient, lost_loss

_NONE = -1


class FirstFault:
    """Remembers at which step a loss, or the gradient, first was not finite.

    Noting reads nothing back, so a GPU is never waited for; :meth:`check` reads once.
    """

    def __init__(self) -> None:
        # Names of a step's losses, and None for the gradient, to the first bad step of each, (N,):
        # methods may return other losses at other steps.
        self._first: dict[tuple[str | None, ...], Tensor] = {}

    def note(self, losses: Mapping[str, Tensor], gradient: Tensor | None, step: int) -> None:
        """Note one step.

        Args:
            losses: scalars by name.
            gradient: scalar, whether the whole gradient is finite; ``None`` where it may overflow.
            step: number of the step, from 0.
        """
        names: tuple[str | None, ...] = tuple(losses)
        finite = torch.isfinite(torch.stack([value.detach() for value in losses.values()]))
        if gradient is not None:
            names, finite = (*names, None), torch.cat([finite, gradient[None]])
        if names not in self._first:
            self._first[names] = torch.full_like(finite, _NONE, dtype=torch.int64)
        first = self._first[names]
        first.masked_fill_(finite.logical_not() & (first == _NONE), step)

    def check(self) -> None:
        """Stop at the first number that was not finite; this reads the device once.

        Raises:
            NonFiniteLossError: the loss, or the gradient, and the step are named.
        """
        if not self._first:
            return
        names = [name for key in self._first for name in key]
        steps: list[int] = torch.cat(list(self._first.values())).tolist()
        bad = [place for place, step in enumerate(steps) if step != _NONE]
        if bad:
            # Of one step the losses come before the gradient, which they spoil.
            place = min(bad, key=lambda place: steps[place])
            name, step = names[place], steps[place]
            raise lost_gradient(step) if name is None else lost_loss(name, step)


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Let the optimiser take its step where ``bad`` is false, without reading it back.

    A step with gradients of 0 would not do: momentum and weight decay would still move weights.
    Fused optimisers read ``found_inf`` on the device and leave weights, momentum and their count of
    steps alone where it is 1, as they do for :class:`torch.amp.GradScaler`.

    Args:
        optimizer: a fused one, as every one of :func:`daptkit.train.optim.build_optimizer` is.
        bad: scalar of bool on the device.
    """
    assert getattr(optimizer, "_step_supports_amp_scaling", False), "the optimiser is not fused"
    fused: Any = optimizer
    # Exactly 1.0 is what the kernels compare with.
    fused.found_inf = bad.float()
    try:
        optimizer.step()
    finally:
        del fused.found_inf
