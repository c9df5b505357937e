"""BNM and infomax against plain loops and the library's layers."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from daptkit.method import Method
from daptkit.testing import assert_global_batch, make_batch, make_step, make_task
from daptkit_pytorch_adapt.bnm import BNM, nuclear_norm_loss
from daptkit_pytorch_adapt.infomax import Infomax, evenness_loss, mean_entropy, prior_gap
from daptkit_pytorch_adapt.plugin import BNMOptions, InfomaxOptions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    layers = pytest.importorskip("pytorch_adapt.layers")

EVEN = torch.full((3,), 1 / 3)
each_method = pytest.mark.parametrize(
    "method",
    [BNM(BNMOptions(), make_task()), Infomax(InfomaxOptions(), make_task())],
    ids=["bnm", "infomax"],
)


def logits(n: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sure(*counts: int) -> Tensor:
    """Return logits of predictions beyond doubt, ``counts`` of each class."""
    classes = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    return 50.0 * torch.nn.functional.one_hot(classes, 3)


def test_nuclear_norm_is_that_of_the_scaled_predictions() -> None:
    z, q = logits(6), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    p = torch.softmax(z, 1)
    for prior, scale in ((None, torch.ones(3)), (q, (3 * q).sqrt())):
        scaled = p * scale
        norm = torch.linalg.eigvalsh(scaled.T @ scaled).clamp_min(0).sqrt().sum()
        assert nuclear_norm_loss(z, prior).item() == pytest.approx(-norm.item() / 6, rel=1e-9)
    torch.testing.assert_close(nuclear_norm_loss(z), layers.BNMLoss()(z))
    torch.testing.assert_close(nuclear_norm_loss(z, EVEN.double()), nuclear_norm_loss(z))


def test_nuclear_norm_works_in_half_precision_where_the_library_raises() -> None:
    z = logits(6)
    with pytest.raises(RuntimeError):
        layers.BNMLoss()(z.bfloat16())
    assert nuclear_norm_loss(z.bfloat16()).item() == pytest.approx(
        nuclear_norm_loss(z).item(), rel=0.01
    )


@pytest.mark.parametrize("prior", [None, EVEN.double()])
def test_gradient_of_the_nuclear_norm(prior: Tensor | None) -> None:
    assert torch.autograd.gradcheck(
        lambda z: nuclear_norm_loss(z, prior), logits(5).requires_grad_()
    )
    collapsed = torch.zeros(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(nuclear_norm_loss(collapsed, prior), collapsed)
    assert gradient.isfinite().all()


@each_method
def test_a_training_that_diverged_is_no_fault_of_the_plugin(method: Method) -> None:
    target = make_batch(4, 0)
    target.logits.data.fill_(float("nan"))
    assert not all(x.isfinite() for x in method.losses(None, target, make_step()).values())


def test_entropy_and_evenness_are_the_loop() -> None:
    z = logits(5)
    rows = torch.softmax(z, 1).tolist()
    mean = [sum(r[k] for r in rows) / 5 for k in range(3)]
    entropy = sum(-p * math.log(p) for r in rows for p in r) / 5
    assert mean_entropy(z).item() == pytest.approx(entropy)
    evenness = sum(p * math.log(p) for p in mean)
    assert evenness_loss(z).item() == pytest.approx(evenness, rel=1e-5)
    q = [0.6, 0.3, 0.1]
    gap = sum(p * math.log(p / k) for p, k in zip(mean, q, strict=True)) - math.log(3)
    assert prior_gap(z, torch.tensor(q, dtype=torch.float64)).item() == pytest.approx(gap)
    torch.testing.assert_close(prior_gap(z, EVEN.double()), evenness_loss(z), rtol=1e-5, atol=1e-6)


def test_a_term_of_weight_zero_is_left_out() -> None:
    target = make_batch(5, 1)
    alone = Infomax(InfomaxOptions(diversity=0.0), make_task())
    assert set(alone.losses(None, target, make_step())) == {"entropy"}


@each_method
def test_a_known_prior_decides_which_split_is_best(method: Method) -> None:
    """On a true 8:1:1 target an even answer scores best as published: a fault under label shift."""

    def loss(z: Tensor, **values: Tensor) -> float:
        batch = make_batch(30, 0)
        object.__setattr__(batch, "logits", z)
        # The classification loss is weighted, so that predictions need no correction.
        return sum(x.item() for x in method.losses(None, batch, make_step(**values)).values())

    true, even = sure(24, 3, 3), sure(10, 10, 10)
    q = torch.tensor([0.8, 0.1, 0.1])
    assert loss(even) < loss(true)
    assert loss(true, target_prior=q, class_weights=3 * q) < loss(
        even, target_prior=q, class_weights=3 * q
    )


@each_method
def test_two_processes_find_the_loss_of_the_whole_batch(method: Method) -> None:
    assert_global_batch(method)


@each_method
@pytest.mark.parametrize("n", [1, 2])
def test_small_and_saturated_batches_are_finite(method: Method, n: int) -> None:
    target = make_batch(n, 2)
    target.logits.data.mul_(1e4)
    losses = method.losses(None, target, make_step())
    gradients = torch.autograd.grad(list(losses.values()), target.logits)
    assert all(x.isfinite().all() for x in (*losses.values(), *gradients))
