"""CORAL against the formula in plain loops, and the faults of other implementations."""

from __future__ import annotations

import math

import pytest
import torch

from daptkit.errors import UsageError
from daptkit.method import DomainBatch
from daptkit.plugin import build_options
from daptkit.testing import (
    assert_global_batch,
    gap_of_means,
    imports_torch,
    make_batch,
    make_step,
    make_task,
)
from daptkit_coral.coral import CORAL, coral_loss, mean_loss
from daptkit_coral.plugin import CORALOptions, daptkit_methods


@pytest.fixture
def method() -> CORAL:
    return CORAL(CORALOptions(weight=30.0, mean_weight=2.0, ramp=False), make_task())


def moments(x: list[list[float]], w: list[float]) -> tuple[list[float], list[list[float]]]:
    total, d = sum(w), len(x[0])
    m = [sum(wi * r[j] for wi, r in zip(w, x, strict=True)) / total for j in range(d)]
    c = [
        [
            sum(wi * (r[a] - m[a]) * (r[b] - m[b]) for wi, r in zip(w, x, strict=True))
            / (total - 1)
            for b in range(d)
        ]
        for a in range(d)
    ]
    return m, c


def loop_losses(source: DomainBatch, target: DomainBatch) -> tuple[float, float]:
    (ms, cs), (mt, ct) = (
        moments(b.features.tolist(), b.weights.tolist()) for b in (source, target)
    )
    d = len(ms)
    covariance = sum((cs[a][b] - ct[a][b]) ** 2 for a in range(d) for b in range(d))
    return covariance / (4 * d * d), sum((a - b) ** 2 for a, b in zip(ms, mt, strict=True)) / d


@pytest.mark.parametrize(("n", "m"), [(4, 3), (30, 20)])  # inner products, covariances
def test_losses_are_the_loop(method: CORAL, n: int, m: int) -> None:
    source = make_batch(n, 1, weights=torch.linspace(0.2, 2.0, n))
    target = make_batch(m, 2, shift=1.0, weights=torch.linspace(1.5, 0.5, m))
    covariance, mean = loop_losses(source, target)
    losses = method.losses(source, target, make_step())
    assert set(losses) == {"covariance", "mean"}
    assert losses["covariance"].item() == pytest.approx(30 * covariance, rel=1e-4)
    assert losses["mean"].item() == pytest.approx(2 * mean, rel=1e-4)


@pytest.mark.parametrize("progress", [0.0, 0.2, 1.0])
def test_ramp(progress: float) -> None:
    source, target = make_batch(8, 3), make_batch(6, 4, shift=1.0)
    constant = CORAL(CORALOptions(ramp=False), make_task()).losses(
        source, target, make_step(progress)
    )
    ramped = CORAL(CORALOptions(), make_task()).losses(source, target, make_step(progress))
    factor = 2 / (1 + math.exp(-10 * progress)) - 1
    for name in ("covariance", "mean"):
        assert constant[name].item() > 0
        assert ramped[name].item() == pytest.approx(factor * constant[name].item(), rel=1e-5)


def test_a_term_of_weight_zero_is_left_out() -> None:
    source, target = make_batch(8, 5), make_batch(6, 6)
    published = CORAL(CORALOptions(mean_weight=0.0), make_task())
    assert set(published.losses(source, target, make_step())) == {"covariance"}
    nothing = CORAL(CORALOptions(weight=0.0, mean_weight=0.0), make_task())
    assert nothing.losses(source, target, make_step()) == {}


def test_published_loss_does_not_see_means_and_mean_loss_does() -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert coral_loss(x, x + 3).item() == pytest.approx(0.0, abs=1e-20)
    assert mean_loss(x, x + 3).item() == pytest.approx(9.0)
    assert coral_loss(x, 2 * x).item() > 0.01


@pytest.mark.parametrize("n", [5, 12])
def test_gradient(n: int) -> None:
    generator = torch.Generator().manual_seed(1)
    s, t = (torch.randn(k, 9, generator=generator, dtype=torch.float64) for k in (n, n + 1))
    w = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
    inputs = (s.requires_grad_(), (1.5 * t).requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: coral_loss(a, b, w), inputs)
    assert torch.autograd.gradcheck(lambda a, b: mean_loss(a, b, w), inputs)


def test_loss_depends_on_the_target(method: CORAL) -> None:
    source = make_batch(8, 7)
    for name in ("covariance", "mean"):
        values = {
            method.losses(source, make_batch(8, seed), make_step())[name].item() for seed in (8, 9)
        }
        assert len(values) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(method: CORAL, dtype: torch.dtype) -> None:
    full = method.losses(make_batch(9, 10), make_batch(7, 11, shift=0.5), make_step())
    half = make_batch(9, 10, dtype=dtype), make_batch(7, 11, shift=0.5, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method.losses(*half, make_step())
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(full[name].item(), rel=0.05)
        (grad,) = torch.autograd.grad(loss, (half[0].features,), retain_graph=True)
        assert grad.isfinite().all()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 6), (6, 1)])
def test_batch_of_one(method: CORAL, n: int, m: int) -> None:
    source, target = make_batch(n, 12), make_batch(m, 13)
    losses = method.losses(source, target, make_step())
    assert losses["covariance"].item() == 0.0
    grads = torch.autograd.grad(list(losses.values()), [source.features, target.features])
    assert all(g.isfinite().all() for g in grads)


def test_constant_features_are_finite(method: CORAL) -> None:
    source, target = make_batch(5, 14), make_batch(4, 15)
    source.features.data.fill_(7.7)
    target.features.data.fill_(7.7)
    losses = method.losses(source, target, make_step())
    grads = torch.autograd.grad(list(losses.values()), [source.features, target.features])
    assert all(loss.item() == pytest.approx(0.0, abs=1e-8) for loss in losses.values())
    assert all(g.isfinite().all() for g in grads)


def test_two_processes_find_the_loss_of_the_whole_batch(method: CORAL) -> None:
    assert_global_batch(method)


def test_following_the_loss_closes_a_gap_of_means(method: CORAL) -> None:
    before, after = gap_of_means(method)
    assert after < 0.01 * before


def test_following_the_loss_closes_a_gap_of_covariances() -> None:
    generator = torch.Generator().manual_seed(2)
    source = torch.randn(64, 4, generator=generator)
    target = (3 * torch.randn(64, 4, generator=generator)).requires_grad_()
    before = coral_loss(source, target).item()
    optimiser = torch.optim.Adam([target], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        coral_loss(source, target).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert coral_loss(source, target).item() < 0.01 * before


@pytest.mark.filterwarnings("ignore")
def test_against_pytorch_adapt() -> None:
    layers = pytest.importorskip("pytorch_adapt.layers")
    source, target = make_batch(9, 16).features, make_batch(7, 17).features
    torch.testing.assert_close(coral_loss(source, target), layers.CORALLoss()(source, target))


def test_specification_and_bounds() -> None:
    spec = daptkit_methods()
    assert spec.name == "coral"
    assert build_options(spec.options, {"ramp": "no"}).ramp is False
    for name in ("weight", "mean_weight"):
        with pytest.raises(UsageError, match=f"coral.{name}"):
            build_options(spec.options, {name: -1}, "coral.")


def test_torch_free_half_imports_no_torch() -> None:
    assert not imports_torch("daptkit_coral.plugin")
