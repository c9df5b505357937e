"""The step over several processes: DistributedDataParallel around it, and the gather within."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from daptkit.train.gather import Gather, gather_over
from daptkit.train.world import World


def gather_of(world: World) -> Gather | None:
    """Return the gather of a run's processes; ``None`` for one process."""
    return None if world.device_group is None else gather_over(world.device_group)


def parallel(step: nn.Module, world: World) -> Any:
    """Return the step as it is called: with several processes, gradients become their mean.

    Weights and buffers are made those of rank 0 once. Buffers are then equal by themselves, since
    every BatchNorm normalises by the gathered batch. Wrap again whenever other parameters are
    trained, and let go of the former wrapper first.

    Args:
        step: the step; its gradients are the parts of one loss over all processes.
        world: processes that share the batch.
    """
    if world.device_group is None:
        return step
    # A method may leave its losses out of some steps, and then its parameters have no gradient.
    return DistributedDataParallel(
        step,
        process_group=world.device_group,
        forward_sync_buffers=False,
        find_unused_parameters=True,
    )
