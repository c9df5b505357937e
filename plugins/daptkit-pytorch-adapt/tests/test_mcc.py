"""MCC against the formula in plain loops, the library's layer, and what label shift does to it."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from daptkit.errors import UsageError
from daptkit.plugin import build_options
from daptkit.testing import assert_global_batch, make_batch, make_step, make_task
from daptkit_pytorch_adapt.mcc import MCC, class_confusion
from daptkit_pytorch_adapt.plugin import MCCOptions
from daptkit_pytorch_adapt.prior import expected_prior, target_logits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    layers = pytest.importorskip("pytorch_adapt.layers")


@pytest.fixture
def method() -> MCC:
    return MCC(MCCOptions(weight=2.0), make_task())


def logits(n: int, k: int = 3, seed: int = 0) -> Tensor:
    drawn = torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 3 * drawn


def loop(z: list[list[float]], t: float, a: list[float], w: list[float]) -> float:
    n, k = len(z), len(z[0])
    y = []
    for row in z:
        e = [math.exp(v / t) for v in row]
        y.append([v / sum(e) for v in e])
    sure = [
        wi * (1 + math.exp(sum(p * math.log(p) for p in row))) for wi, row in zip(w, y, strict=True)
    ]
    u = [n * s / sum(sure) for s in sure]
    c = [[sum(u[i] * y[i][p] * y[i][q] for i in range(n)) for q in range(k)] for p in range(k)]
    return sum(a[j] * sum(c[j][m] for m in range(k) if m != j) / sum(c[j]) for j in range(k))


@pytest.mark.parametrize("prior", [None, [0.7, 0.2, 0.1]])
def test_loss_is_the_loop(prior: list[float] | None) -> None:
    z, w = logits(7), torch.linspace(0.2, 2.0, 7, dtype=torch.float64)
    wanted = loop(z.tolist(), 2.5, prior or [1 / 3] * 3, w.tolist())
    given = None if prior is None else torch.tensor(prior, dtype=torch.float64)
    assert class_confusion(z, 2.5, given, w).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("temperature", "k"), [(1.0, 3), (2.5, 10)])
def test_against_pytorch_adapt(temperature: float, k: int) -> None:
    z = logits(9, k, 1)
    z.requires_grad_()
    mine, theirs = class_confusion(z, temperature), layers.MCCLoss(T=temperature)(z)
    # Their entropy adds a small number inside the logarithm.
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(mine, z), torch.autograd.grad(theirs, z), rtol=1e-4, atol=1e-7
    )


def test_a_class_without_mass_adds_nothing_where_the_library_is_nan() -> None:
    z = torch.tensor([[3.0, -1.0, -1e4], [-2.0, 2.0, -1e4]], requires_grad=True)
    assert not layers.MCCLoss()(z).isfinite()
    loss = class_confusion(z, 1.0)
    assert loss.item() == pytest.approx(class_confusion(z[:, :2], 1.0).item() * 2 / 3, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(method: MCC, dtype: torch.dtype) -> None:
    full = method.losses(None, make_batch(7, 11), make_step())["confusion"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = method.losses(None, make_batch(7, 11, dtype=dtype), make_step())["confusion"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)


def test_gradient_and_bounds() -> None:
    z = logits(5).requires_grad_()
    # The weights of images carry no gradient, so numbers would differ from it: fix them.
    fixed = 1 / (1 + torch.exp(-torch.distributions.Categorical(logits=z / 2.5).entropy()))

    def loss(x: Tensor) -> Tensor:
        sure = 1 + torch.exp(-torch.distributions.Categorical(logits=x.detach() / 2.5).entropy())
        return class_confusion(x, 2.5, None, (fixed / (fixed * sure)).detach())

    assert torch.autograd.gradcheck(loss, z)
    assert class_confusion(torch.zeros(6, 3)).item() == pytest.approx(2 / 3)
    assert class_confusion(1e3 * torch.eye(3)).item() == 0.0
    assert class_confusion(torch.zeros(1, 3)).isfinite()
    assert class_confusion(torch.zeros(4, 3), weights=torch.zeros(4)).item() == 0.0


def test_two_processes_find_the_loss_of_the_whole_batch(method: MCC) -> None:
    assert_global_batch(method)


def test_weight_and_ramp() -> None:
    target = make_batch(6, 3)

    def loss(progress: float, **options: float) -> float:
        made = MCC(MCCOptions(**options), make_task())  # type: ignore[arg-type]
        return made.losses(None, target, make_step(progress))["confusion"].item()

    assert loss(0.1, weight=3.0) == pytest.approx(3 * loss(0.9))
    assert loss(0.1, ramp=True) == pytest.approx(math.tanh(0.5) * loss(0.1), rel=1e-5)
    with pytest.raises(UsageError, match=r"mcc\.temperature"):
        build_options(MCCOptions, {"temperature": 0}, "mcc.")


def test_without_an_owner_of_a_prior_it_is_the_published_loss(method: MCC) -> None:
    target = make_batch(8, 4)
    published = MCC(MCCOptions(weight=2.0, prior=False), make_task())
    loss, same = (
        m.losses(None, target, make_step())["confusion"].item() for m in (method, published)
    )
    assert loss == pytest.approx(same, rel=1e-6)
    prior = torch.tensor([0.8, 0.1, 0.1])
    for step in (make_step(target_prior=prior), make_step(class_weights=3 * prior)):
        known = method.losses(None, target, step)["confusion"].item()
        assert known != pytest.approx(loss, rel=1e-3)
        assert published.losses(None, target, step)["confusion"].item() == same


def test_prior_and_posterior_of_the_owners() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.3, 0.6])
    z = logits(5).float()
    trained_under_q = make_step(class_weights=q / p, target_prior=q)
    trained_under_p = make_step(target_prior=q)
    for step in (trained_under_q, trained_under_p, make_step(class_weights=q / p)):
        torch.testing.assert_close(expected_prior(step, p), q)
    torch.testing.assert_close(expected_prior(make_step(), p), torch.full((3,), 1 / 3))
    # Corrected once: not where the classification loss was weighted already.
    torch.testing.assert_close(target_logits(z, trained_under_q, p), z)
    wanted = torch.softmax(z, 1) * q / p
    wanted = wanted / wanted.sum(1, keepdim=True)
    torch.testing.assert_close(torch.softmax(target_logits(z, trained_under_p, p), 1), wanted)


def test_a_class_that_no_prior_expects_leaves_the_loss_finite(method: MCC) -> None:
    target = make_batch(8, 5)
    for weights in (torch.tensor([0.0, 1.5, 1.5]), torch.ones(3)):
        step = make_step(class_weights=weights, target_prior=torch.tensor([0.0, 0.5, 0.5]))
        loss = method.losses(None, target, step)["confusion"]
        (gradient,) = torch.autograd.grad(loss, target.logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_a_known_prior_keeps_a_rare_class_rare() -> None:
    """A tenth of the images are of class 1; the published loss makes it three times as many."""
    true = torch.tensor([0.9, 0.1])
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(400, generator=generator) < true[1]).long()
    scores = torch.randn(400, generator=generator) + 1.5 * (labels - 0.5)

    def share(prior: Tensor | None) -> float:
        shift = torch.zeros(2) if prior is None else (prior / 0.5).log()
        bias = torch.zeros(2, requires_grad=True)
        for _ in range(100):
            z = torch.stack([-scores, scores], 1) + bias + shift
            (gradient,) = torch.autograd.grad(class_confusion(z, 2.5, prior), bias)
            bias.data -= gradient
        return (z.argmax(1) == 1).float().mean().item()

    assert labels.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert share(None) > 0.3
    assert share(true) < 0.12
