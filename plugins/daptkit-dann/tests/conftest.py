"""Batches and steps for the tests of this package."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from daptkit.method import DomainBatch, Method, StepContext, TaskInfo

BatchMaker = Callable[..., DomainBatch]


@pytest.fixture
def task() -> TaskInfo:
    """Three classes and six features."""
    return TaskInfo(
        classes=("a", "b", "c"),
        dims={"features": 6, "logits": 3},
        source_prior=torch.full((3,), 1 / 3),
        n_source=100,
        n_target=80,
    )


def make_batch(
    n: int,
    seed: int,
    *,
    shift: float = 0.0,
    weights: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> DomainBatch:
    """Return a batch of n normal features (n, 6) and logits (n, 3) that carry a gradient."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 6, generator=generator) + shift
    logits = 2 * torch.randn(n, 3, generator=generator)
    features, logits = (x.to(dtype).requires_grad_() for x in (features, logits))
    return DomainBatch(
        logits=logits,
        taps={"features": features, "logits": logits},
        weights=torch.ones(n) if weights is None else weights,
        groups=torch.arange(n),
        index=torch.arange(n),
    )


def join(first: DomainBatch, second: DomainBatch) -> DomainBatch:
    """Return one batch of the rows of two."""
    taps = {k: torch.cat([first.taps[k], second.taps[k]]) for k in first.taps}
    n = len(first) + len(second)
    return DomainBatch(
        logits=taps["logits"],
        taps=taps,
        weights=torch.cat([first.weights, second.weights]),
        groups=torch.arange(n),
        index=torch.arange(n),
    )


def make_step(progress: float = 1.0, **values: object) -> StepContext:
    """Return the context of one step."""
    return StepContext(progress=progress, step=0, class_weights=torch.ones(3), **values)  # type: ignore[arg-type]


def two_process_loss(
    method: Method,
    mine: tuple[DomainBatch, DomainBatch],
    other: tuple[DomainBatch, DomainBatch],
) -> dict[str, Tensor]:
    """Return the losses of process 0 of two: what it gathers is joined to process 1's."""
    seen: list[Tensor] = []

    def record(x: Tensor) -> Tensor:
        seen.append(x)
        return x

    method.losses(*other, make_step(gather=record))
    rest = iter(seen)
    return method.losses(*mine, make_step(gather=lambda x: torch.cat([x, next(rest)])))


@pytest.fixture(name="make_batch")
def make_batch_fixture() -> BatchMaker:
    return make_batch


@pytest.fixture(name="make_step")
def make_step_fixture() -> Callable[..., StepContext]:
    return make_step


@pytest.fixture
def check_gather() -> Callable[[Method], None]:
    """Check that two processes with half a batch each find the loss and gradient of the whole."""

    def check(method: Method) -> None:
        weights = torch.tensor([0.2, 2.0, 1.0, 0.5])
        mine = make_batch(4, 1, weights=weights), make_batch(3, 2, shift=1.0)
        other = make_batch(4, 3, weights=3 * weights), make_batch(3, 4, shift=0.5)
        leaves = [b.features for b in (*mine, *other)]
        whole = method.losses(join(mine[0], other[0]), join(mine[1], other[1]), make_step())
        split = two_process_loss(method, mine, other)
        assert whole.keys() == split.keys()
        assert whole
        for name in whole:
            torch.testing.assert_close(split[name], whole[name])
            expected = torch.autograd.grad(whole[name], leaves, retain_graph=True)
            found = torch.autograd.grad(split[name], leaves)
            torch.testing.assert_close(found, expected)

    return check


@pytest.fixture
def mean_gap() -> Callable[[Method], tuple[float, float]]:
    """Return the squared gap of means before and after moving features down a method's loss.

    The method's own parameters, if any, follow the same loss with the same steps.
    """

    def run(method: Method) -> tuple[float, float]:
        source, target = make_batch(32, 5), make_batch(24, 6, shift=2.0)
        leaves = [source.features, target.features]

        def gap() -> float:
            return float((leaves[0].mean(0) - leaves[1].mean(0)).square().sum().detach())

        optimiser = torch.optim.Adam([*leaves, *method.parameters()], lr=0.02)
        before = gap()
        for _ in range(150):
            optimiser.zero_grad()
            losses = method.losses(source, target, make_step())
            torch.autograd.backward(list(losses.values()))
            optimiser.step()
        return before, gap()

    return run
