"""Statistics that undo a scanner, in loops and through every kind of BatchNorm."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from daptkit.method import NormLayer
from daptkit_adabn.statistics import change, deviations, matched

EPS = 1e-3


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    flat = x.double().transpose(0, 1).flatten(1)
    return flat.mean(1), flat.var(1, correction=0)


def layer(mean: list[float], var: list[float]) -> NormLayer:
    return NormLayer(mean=torch.tensor(mean).double(), var=torch.tensor(var).double(), eps=EPS)


def test_formula_in_plain_numbers() -> None:
    own = layer([0.5, -1.0], [2.0, 0.3])
    source = torch.tensor([[0.7, -0.9], [1.5, 0.2]]).double()
    target = torch.tensor([[3.0, -2.0], [6.0, 0.1]]).double()
    for strength in (0.0, 0.3, 1.0):
        mean, var = matched(own, (source[0], source[1]), (target[0], target[1]), strength)
        for c in range(2):
            m, v = own.mean[c].item(), own.var[c].item()
            ratio = math.sqrt(target[1, c] / source[1, c])
            shifted = target[0, c].item() - (source[0, c].item() - m) * ratio
            scaled = (v + EPS) * ratio**2 - EPS
            assert mean[c].item() == pytest.approx(m + strength * (shifted - m))
            assert var[c].item() == pytest.approx(v + strength * (scaled - v))


def test_it_is_the_published_one_where_the_layer_holds_the_sources_moments() -> None:
    own = NormLayer(mean=torch.tensor([0.5]), var=torch.tensor([2.0]), eps=0.0)
    mean, var = matched(own, (own.mean, own.var), (torch.tensor([3.0]), torch.tensor([7.0])))
    assert (mean.item(), var.item()) == pytest.approx((3.0, 7.0))


def test_equal_moments_change_nothing_whatever_the_layer_holds() -> None:
    own = layer([0.5, -1.0], [2.0, 0.3])
    same = torch.tensor([4.0, 5.0]).double(), torch.tensor([0.01, 40.0]).double()
    mean, var = matched(own, same, same)
    torch.testing.assert_close(mean, own.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(var, own.var, rtol=0, atol=1e-12)
    assert change(own, (mean, var)) == pytest.approx(0.0, abs=1e-12)
    assert change(own, (own.mean + (own.var + EPS).sqrt(), own.var)) == pytest.approx(1.0)


def test_constant_channels_are_not_blown_up() -> None:
    source = torch.tensor([1.0, 0.0, 1e-9, 4.0, 0.0]).double()
    target = torch.tensor([4.0, 0.0, 2e-9, 0.0, 9.0]).double()
    own_s, own_t = deviations(source, target)
    assert own_s.tolist() == pytest.approx([1.0, 1.0, math.sqrt(2e-9), 2.0, 3.0])
    assert own_t.tolist() == pytest.approx([2.0, 1.0, math.sqrt(2e-9), 2.0, 3.0])
    everything_constant = deviations(torch.zeros(3), torch.zeros(3))
    assert all(torch.equal(found, torch.ones(3)) for found in everything_constant)


KINDS: dict[str, Any] = {
    "batchnorm": lambda: nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()),
    "fused": lambda: BatchNormAct2d(4, act_layer=nn.SiLU),
    "fused sync": lambda: SyncBatchNormAct(4),
    "fused frozen": lambda: FrozenBatchNormAct2d(4, act_layer=nn.ReLU),
    "fused without": lambda: BatchNormAct2d(4, apply_act=False),
}


def prepared(kind: str, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Return a module with statistics that no data has, and its layer that keeps them."""
    torch.manual_seed(seed)
    made: nn.Module = KINDS[kind]()
    if kind == "fused sync":
        made.act = nn.LeakyReLU(0.2)  # timm puts it there when it converts a network
    norm = next(m for m in made.modules() if hasattr(m, "running_mean"))
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            tensor.normal_()
        norm.running_var.uniform_(0.3, 3.0)
    return made.double().eval(), norm


@pytest.mark.parametrize("kind", KINDS)
def test_a_scanner_is_undone_through_the_activation(kind: str) -> None:
    """What a scanner does to each channel, gain and offset, is gone behind the layer."""
    made, norm = prepared(kind)
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    gain = torch.tensor([0.2, 1.0, 3.0, 0.7]).double().view(1, 4, 1, 1)
    seen = gain * x + torch.tensor([5.0, -2.0, 0.1, 0.0]).double().view(1, 4, 1, 1)
    expected = made(x)
    assert not torch.allclose(made(seen), expected, atol=0.1)
    own = NormLayer(mean=norm.running_mean.clone(), var=norm.running_var.clone(), eps=norm.eps)
    mean, var = matched(own, moments(x), moments(seen))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
    torch.testing.assert_close(made(seen), expected, rtol=1e-9, atol=1e-9)
