"""Random numbers of a step, the same whatever has run before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from daptkit.method import StepContext


def drawn_normal(shape: Sequence[int], ctx: StepContext) -> Tensor:
    """Return normal draws of the step's generator, on its device.

    Args:
        shape: of the result.
        ctx: of the step.
    """
    generator = ctx.generator
    assert generator is not None, "the host offers a generator"
    return torch.randn(tuple(shape), device=generator.device, generator=generator)
