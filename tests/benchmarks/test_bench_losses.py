"""Forward and backward of the batch losses beside pytorch-adapt's and plain autograd's.

``pytest tests/benchmarks/test_bench_losses.py -m benchmark -s`` prints how many times as long as
daptkit's each other implementation takes, by the median and by the minimum. All take turns in one
process, with one thread and one allocator, so that what disturbs the machine disturbs them all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from daptkit import nn

Loss = Callable[[Tensor, Tensor], Tensor]

SECONDS = 6.0
SIZES = [(64, 512), (256, 512), (1024, 512), (64, 2048)]

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


def losses(name: str) -> dict[str, Loss]:
    """Return the implementations of one loss; the first is daptkit's."""
    layers = pytest.importorskip("pytorch_adapt.layers")
    if name == "coral":
        return {"daptkit": nn.covariance_distance, "pytorch_adapt": layers.CORALLoss()}
    few, many = torch.logspace(-3, 1, 5, base=2.0), torch.logspace(-8, 8, 33, base=2.0)
    return {
        "daptkit": nn.mmd2,
        "autograd": autograd_mmd,
        "pytorch_adapt_5_kernels": layers.MMDLoss(kernel_scales=few, mmd_type="quadratic"),
        "pytorch_adapt_33_kernels": layers.MMDLoss(kernel_scales=many, mmd_type="quadratic"),
    }


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # As after any step of a network: the allocator no longer returns small blocks to the system.
    torch.empty(7_500_000)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("name", ["mmd", "coral"])
def test_forward_and_backward(benchmark: Any, name: str, n: int, d: int) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(n, d, generator=generator).requires_grad_()
    target = (torch.randn(n, d, generator=generator) + 0.3).requires_grad_()

    def step(loss: Loss) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(source, target), (source, target))

    sides = losses(name)
    for loss in sides.values():
        assert all(g.isfinite().all() for g in step(loss))
    spent: dict[str, list[float]] = {side: [] for side in sides}
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(spent["daptkit"]) < 9:
        for side, loss in sides.items():
            started = time.perf_counter()
            step(loss)
            spent[side].append(time.perf_counter() - started)
    for summary in (statistics.median, min):
        ours = summary(spent["daptkit"])
        ratios = {side: round(summary(times) / ours, 2) for side, times in spent.items()}
        benchmark.extra_info[summary.__name__] = {"milliseconds": round(1e3 * ours, 3), **ratios}
    print(f"\n{name} ({n}, {d}), {len(spent['daptkit'])} rounds:", dict(benchmark.extra_info))
    benchmark.pedantic(step, args=(sides["daptkit"],), rounds=5)
