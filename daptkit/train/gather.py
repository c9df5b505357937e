"""One batch over several processes: the differentiable gather, and BatchNorm through it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Gather = Callable[[Tensor], Tensor]
"""From (N, ...) of each process to (W * N, ...) on every one, in the order of the ranks."""


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.rows = group, len(x)
        return _collected(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        start = dist.get_rank(ctx.group) * ctx.rows
        return total[start : start + ctx.rows], None


def gather_over(group: dist.ProcessGroup) -> Gather:
    """Return the differentiable concatenation over the processes of a group.

    The gradient of a process' rows is the sum of what every process sends back to them. Where each
    process computes the same loss of the gathered batch, the mean of their gradients, which
    DistributedDataParallel takes, is the gradient of that loss on one process. Every process of the
    group must call it, forward and backward, in the same order and with the same shape.

    Args:
        group: processes; its backend must work on the tensors' device.
    """

    def gather(x: Tensor) -> Tensor:
        if x.requires_grad:
            gathered: Tensor = _Gather.apply(x, group)
            return gathered
        return _collected(x, group)

    return gather


def _collected(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    # Not every backend knows bool.
    sent = x.detach().to(torch.uint8 if x.dtype == torch.bool else x.dtype).contiguous()
    parts = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, sent, group=group)
    return torch.cat(parts).to(x.dtype)


@contextlib.contextmanager
def batch_norm_over(gather: Gather | None) -> Iterator[None]:
    """Let every BatchNorm in training normalise by the gathered batch; ``None`` changes nothing.

    Mean and variance are those of all processes' rows, found in two passes, and running variances
    are unbiased over all of them. A layer in eval mode keeps its own statistics. Unlike
    ``torch.nn.SyncBatchNorm`` this works on a CPU as well, and with classes derived from BatchNorm.

    Args:
        gather: see :func:`gather_over`.
    """
    if gather is None:
        yield
        return
    with _BatchNormMode(gather):
        yield


class _BatchNormMode(TorchFunctionMode):
    def __init__(self, gather: Gather) -> None:
        super().__init__()
        self._gather = gather

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.batch_norm:
            return _batch_norm(self._gather, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    gather: Gather,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what :func:`torch.nn.functional.batch_norm` does, on (N, C, ...) of all processes.

    The parameters have the names of its own, since callers may give them by name.
    """
    if not training:
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, False, momentum, eps
        )
    with torch.autocast(input.device.type, enabled=False):
        x = input if input.dtype == torch.float64 else input.float()
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        own = gather(x.mean(dims)[None])
        mean = own.mean(0)
        centred = x - mean.view(shape)
        variance = gather(centred.square().mean(dims)[None]).mean(0)
        count = x.numel() // x.shape[1] * len(own)
        _update(running_mean, mean, momentum)
        _update(running_var, variance * (count / (count - 1)), momentum)
        out = centred * (variance + eps).rsqrt().view(shape)
        if weight is not None:
            out = out * weight.view(shape)
        if bias is not None:
            out = out + bias.view(shape)
    return out.to(input.dtype)


@torch.no_grad()
def _update(running: Tensor | None, value: Tensor, momentum: float) -> None:
    if running is not None:
        running.mul_(1 - momentum).add_(value.to(running.dtype), alpha=momentum)
