"""Two processes that share a batch, played by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

BatchT = TypeVar("BatchT")
Gather = Callable[[Tensor], Tensor]


def losses_of_two_processes(
    losses: Callable[[BatchT, Gather], dict[str, Tensor]], mine: BatchT, other: BatchT
) -> dict[str, Tensor]:
    """Return the losses of process 0: what it gathers is joined to what process 1 does.

    Their graph holds the rows of both.

    Args:
        losses: from the batches of one process and its ``gather`` to losses.
        mine: batches of process 0.
        other: those of process 1, of the same sizes.

    Raises:
        AssertionError: the processes do not gather alike, so that a run would hang.
    """
    seen: list[Tensor] = []

    def record(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    losses(other, record)
    rest = iter(seen)
    found = losses(mine, lambda x: torch.cat([x, _next(rest, x)]))
    assert next(rest, None) is None, "the calls of ctx.gather depend on the batch: a run would hang"
    return found


def _next(rest: Iterator[Tensor], x: Tensor) -> Tensor:
    found = next(rest, None)
    assert found is not None and found.shape == x.shape, (
        "the calls of ctx.gather depend on the batch: a run would hang"
    )
    return found
