"""AFN and BSP against plain loops and the library's layers."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from daptkit.method import Method
from daptkit.testing import assert_global_batch, make_batch, make_step, make_task
from daptkit_pytorch_adapt.afn import AFN, feature_norm_loss
from daptkit_pytorch_adapt.bsp import BSP, spectral_penalty
from daptkit_pytorch_adapt.plugin import AFNOptions, BSPOptions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    layers = pytest.importorskip("pytorch_adapt.layers")

each_method = pytest.mark.parametrize(
    "method", [AFN(AFNOptions(), make_task()), BSP(BSPOptions(), make_task())], ids=["afn", "bsp"]
)


def test_feature_norm_grows_by_the_loop() -> None:
    x = make_batch(5, 0).features.detach().double().requires_grad_()
    w = torch.linspace(0.2, 2.0, 5, dtype=torch.float64)
    loss = feature_norm_loss(x, 0.7, w)
    assert loss.item() == pytest.approx(0.49)
    (gradient,) = torch.autograd.grad(loss, x)
    for i, row in enumerate(x.tolist()):
        norm = math.sqrt(sum(v * v for v in row))
        wanted = [-2 * 0.7 * w[i].item() / w.sum().item() * v / norm for v in row]
        assert gradient[i].tolist() == pytest.approx(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(feature_norm_loss(x, 0.7), x),
        torch.autograd.grad(layers.AdaptiveFeatureNorm(0.7)(x), x),
    )


def test_features_of_length_zero_have_a_finite_gradient() -> None:
    x = torch.zeros(3, 4, requires_grad=True)
    assert torch.autograd.grad(feature_norm_loss(x, 1.0), x)[0].isfinite().all()


def test_spectral_penalty_is_that_of_repeated_rows() -> None:
    x = make_batch(4, 1).features.detach().double()
    values = torch.linalg.eigvalsh(x.T @ x).flip(0).tolist()
    for k in (1, 2, 9):
        assert spectral_penalty(x, k).item() == pytest.approx(sum(values[:k]))
        torch.testing.assert_close(spectral_penalty(x, k), layers.BatchSpectralLoss(k)(x))
    twice = torch.cat([x, x[:2]])
    w = torch.tensor([2.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(spectral_penalty(x, 2, w), spectral_penalty(twice, 2))
    assert spectral_penalty(x, 1, torch.zeros(4)).item() == 0.0


def test_gradient_of_the_spectral_penalty() -> None:
    x = make_batch(4, 2).features.detach().double().requires_grad_()
    w = torch.linspace(0.2, 2.0, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: spectral_penalty(f, 2, w), x)


@each_method
def test_two_processes_find_the_loss_of_the_whole_batch(method: Method) -> None:
    assert_global_batch(method)


@each_method
def test_batch_of_one_constant_and_half_precision(method: Method) -> None:
    for n, dtype in ((1, torch.float32), (5, torch.bfloat16)):
        source, target = make_batch(n, 3, dtype=dtype), make_batch(n, 4, dtype=dtype)
        target.features.data.fill_(0.0)
        losses = method.losses(source, target, make_step())
        assert len(losses) == 2
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        gradients = torch.autograd.grad(list(losses.values()), [source.features, target.features])
        assert all(g.isfinite().all() for g in gradients)


def test_a_training_that_diverged_is_no_fault_of_the_plugin() -> None:
    source = make_batch(4, 5)
    source.features.data.fill_(float("inf"))
    losses = BSP(BSPOptions(), make_task()).losses(source, make_batch(4, 6), make_step())
    assert not losses["source_spectrum"].isfinite()
    assert losses["target_spectrum"].isfinite()
