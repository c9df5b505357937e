"""MCC against the paper's formula in plain loops, and where implementations go wrong."""

from __future__ import annotations

import math

import pytest
import torch

from daptkit.errors import UsageError
from daptkit.plugin import build_options
from daptkit.testing import Check, make_batch, make_step, make_task, parametrize_with_checks
from daptkit_mcc.mcc import MCC, mcc_loss
from daptkit_mcc.plugin import MCCOptions, daptkit_methods


@parametrize_with_checks("mcc")
def test_the_contract(check: Check) -> None:
    check()


@pytest.fixture
def method() -> MCC:
    return MCC(MCCOptions(weight=3.0, temperature=2.0), make_task())


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(z - max(row)) for z in row]
    return [p / sum(powers) for p in powers]


def loop_loss(logits: list[list[float]], weights: list[float], temperature: float) -> float:
    """Equations 2 to 6 of the paper, in float64."""
    rows = [softmax([z / temperature for z in row]) for row in logits]
    entropies = [-sum(p * math.log(p) for p in row) for row in rows]
    sure = [w * (1 + math.exp(-h)) for w, h in zip(weights, entropies, strict=True)]
    sure = [len(rows) * s / sum(sure) for s in sure]
    k = len(rows[0])
    confusion = [
        [sum(s * row[i] * row[j] for s, row in zip(sure, rows, strict=True)) for j in range(k)]
        for i in range(k)
    ]
    shares = [[c / sum(row) for c in row] for row in confusion]
    return sum(shares[i][j] for i in range(k) for j in range(k) if i != j) / k


@pytest.mark.parametrize("n", [1, 4, 30])
def test_loss_is_the_loop(method: MCC, n: int) -> None:
    target = make_batch(n, 1, weights=torch.linspace(0.3, 2.0, n))
    losses = method.losses(make_batch(5, 2), target, make_step())
    wanted = 3 * loop_loss(target.logits.tolist(), target.weights.tolist(), 2.0)
    assert set(losses) == {"confusion"}
    assert losses["confusion"].item() == pytest.approx(wanted, rel=1e-5)


def test_sure_and_different_predictions_are_not_confused() -> None:
    eye = 100 * torch.eye(3)
    assert mcc_loss(eye, torch.ones(3), 2.5).item() == pytest.approx(0.0, abs=1e-6)
    assert mcc_loss(0 * eye, torch.ones(3), 2.5).item() == pytest.approx(2 / 3)


def test_a_class_that_nobody_predicts_is_no_division_by_zero() -> None:
    logits = torch.tensor([[900.0, 0.0, -900.0]] * 4, requires_grad=True)
    loss = mcc_loss(logits, torch.ones(4), 2.5)
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0.0)
    assert grad.isfinite().all()


def test_images_of_weight_zero_do_not_count() -> None:
    logits = make_batch(6, 3).logits.detach()
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0, 0.0, 0.0])
    torch.testing.assert_close(
        mcc_loss(logits, weights, 2.5), mcc_loss(logits[:3], weights[:3], 2.5)
    )
    assert mcc_loss(logits, torch.zeros(6), 2.5).item() == 0.0


def test_gradient_with_certainty_as_a_constant() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    step = 1e-6
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(mcc_loss(logits, torch.ones(5).double(), 2.0), logits)

    def frozen(x: torch.Tensor) -> float:
        """The loss at x, the weights of the images being those at ``logits``."""
        y = torch.softmax(logits.detach() / 2, 1)
        sure = 1 + torch.exp((y * y.log()).sum(1))
        rows = torch.softmax(x / 2, 1)
        confusion = (rows * sure[:, None]).T @ rows
        return float((1 - confusion.diagonal() / confusion.sum(1)).mean())

    for i, j in ((0, 0), (2, 1), (4, 2)):
        moved = logits.detach().clone()
        moved[i, j] += step
        slope = (frozen(moved) - frozen(logits.detach())) / step
        assert grad[i, j].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(method: MCC, dtype: torch.dtype) -> None:
    source = make_batch(3, 5)
    full = method.losses(source, make_batch(9, 6), make_step())["confusion"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method.losses(source, make_batch(9, 6, dtype=dtype), make_step())["confusion"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)


def test_following_the_loss_makes_predictions_sure_and_keeps_every_class() -> None:
    logits = make_batch(40, 7).logits.detach().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        mcc_loss(logits, torch.ones(40), 2.5).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    probability = torch.softmax(logits.detach(), 1)
    assert probability.max(1).values.mean() > 0.95
    assert set(probability.argmax(1).tolist()) == {0, 1, 2}


def test_specification_and_bounds() -> None:
    spec = daptkit_methods()
    assert (spec.name, spec.options) == ("mcc", MCCOptions)
    with pytest.raises(UsageError, match=r"mcc\.temperature"):
        build_options(spec.options, {"temperature": 0}, "mcc.")
