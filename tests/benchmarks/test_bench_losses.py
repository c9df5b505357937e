"""Forward and backward of the batch losses beside pytorch-adapt's and plain autograd's.

Run with ``pytest tests/benchmarks/test_bench_losses.py -m benchmark``: each group compares
implementations of one loss at one size in one process, with one thread and one allocator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from daptkit import nn

Loss = Callable[[Tensor, Tensor], Tensor]

pytestmark = [pytest.mark.benchmark, pytest.mark.filterwarnings("ignore")]


def autograd_mmd(s: Tensor, t: Tensor) -> Tensor:
    """Return the multi-kernel MMD with one exponential, its gradient left to autograd."""
    x = torch.cat([s, t])
    c = torch.cat([s.new_full((len(s),), 1 / len(s)), s.new_full((len(t),), -1 / len(t))])
    norms = x.square().sum(1)
    distances = (norms[:, None] + norms - 2 * x @ x.T).clamp_min(0)
    power = torch.exp(-distances / (4 * distances.detach().mean()))
    kernel = power
    for _ in range(4):
        power = power * power
        kernel = kernel + power
    return c @ kernel @ c


def make_loss(name: str) -> Loss:
    if name.startswith("adapt"):
        layers = pytest.importorskip("pytorch_adapt.layers")
        if name == "adapt_coral":
            coral: Loss = layers.CORALLoss()
            return coral
        scales = torch.tensor([2.0**k for k in range(-3, 2)])
        mmd: Loss = layers.MMDLoss(kernel_scales=scales, mmd_type="quadratic")
        return mmd
    own: dict[str, Loss] = {
        "coral": nn.covariance_distance,
        "mmd": nn.mmd2,
        "autograd_mmd": autograd_mmd,
    }
    return own[name]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [64, 256, 1024])
@pytest.mark.parametrize("name", ["mmd", "autograd_mmd", "adapt_mmd", "coral", "adapt_coral"])
def test_forward_and_backward(benchmark: Any, name: str, n: int) -> None:
    loss = make_loss(name)
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(n, 512, generator=generator).requires_grad_()
    target = (torch.randn(n, 512, generator=generator) + 0.3).requires_grad_()

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(source, target), (source, target))

    benchmark.group = f"{name.rsplit('_', 1)[-1]} ({n}, 512)"
    grads = benchmark(step)
    assert all(g.isfinite().all() for g in grads)
