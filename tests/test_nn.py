"""The numeric kit against plain float64 loops written from the formulas, and its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from daptkit import nn
from daptkit.nn import kernels
from nn_loops import (
    draw,
    draw_weights,
    loop_covariance,
    loop_covariance_distance,
    loop_joint_mmd2,
    loop_mean,
    squared,
)

POWERS = range(-3, 2)


def test_weighted_mean_is_the_loop() -> None:
    x, w = draw(7, 3, 0), draw_weights(7, 1)
    torch.testing.assert_close(nn.weighted_mean(x, w).tolist(), loop_mean(x.tolist(), w.tolist()))
    expected = sum((w[i] * x[i, 0]).item() for i in range(7)) / w.sum().item()
    assert nn.weighted_mean(x[:, 0], w).item() == pytest.approx(expected)
    assert nn.weighted_mean(x[:, 0]).item() == pytest.approx(x[:, 0].mean().item())


def test_weighted_mean_of_no_weight_is_zero_with_a_finite_gradient() -> None:
    x = torch.ones(4, requires_grad=True)
    loss = nn.weighted_mean(x, torch.zeros(4))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(4))


def test_weighted_covariance_is_the_loop() -> None:
    x, w = draw(9, 4, 2), draw_weights(9, 3)
    expected = torch.tensor(loop_covariance(x.tolist(), w.tolist()), dtype=torch.float64)
    torch.testing.assert_close(nn.weighted_covariance(x, w), expected)
    torch.testing.assert_close(nn.weighted_covariance(x), torch.cov(x.T))


def test_integer_weights_of_a_covariance_are_repeated_rows() -> None:
    x, times = draw(6, 3, 4), torch.tensor([1, 0, 3, 2, 1, 4])
    repeated = torch.cov(x.repeat_interleave(times, 0).T)
    torch.testing.assert_close(nn.weighted_covariance(x, times), repeated)


@pytest.mark.parametrize("total", [0.0, 0.5, 1.0])
def test_covariance_of_at_most_one_row_is_zero(total: float) -> None:
    w = torch.full((4,), total / 4)
    assert torch.equal(nn.weighted_covariance(draw(4, 3, 5).float(), w), torch.zeros(3, 3))


def test_covariance_keeps_its_digits_at_a_large_mean() -> None:
    x, w = (draw(1000, 5, 6) / 10 + 1e4).float(), draw_weights(1000, 6).float()
    exact = nn.weighted_covariance(x.double(), w.double())
    error = (nn.weighted_covariance(x, w).double() - exact).abs().max() / exact.max()
    # Subtracting the rounded mean once is wrong by 1%, and E[xx'] - mm' by far more.
    assert error < 1e-4


@pytest.mark.parametrize("d", [3, 40])  # covariances are formed for 3, inner products for 40
def test_covariance_distance_is_the_loop(d: int) -> None:
    s, t = draw(8, d, 7), draw(5, d, 8, shift=0.5) * 1.7
    ws, wt = draw_weights(8, 9), draw_weights(5, 10)
    expected = loop_covariance_distance(s.tolist(), t.tolist(), ws.tolist(), wt.tolist())
    assert nn.covariance_distance(s, t, ws, wt).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [3, 40])
def test_covariance_distance_of_large_means_in_float32(d: int) -> None:
    s, t = draw(12, d, 11, shift=1e4).float(), 2 * draw(9, d, 12).float() + 1e4
    exact = nn.covariance_distance(s.double(), t.double()).item()
    assert nn.covariance_distance(s, t).item() == pytest.approx(exact, rel=1e-4)


def test_mean_distance_is_the_loop() -> None:
    s, t = draw(8, 4, 13), draw(5, 4, 14, shift=0.7)
    ws, wt = draw_weights(8, 15), draw_weights(5, 16)
    expected = squared(loop_mean(s.tolist(), ws.tolist()), loop_mean(t.tolist(), wt.tolist()))
    assert nn.mean_distance(s, t, ws, wt).item() == pytest.approx(expected)
    far = nn.mean_distance((s + 1e4).float(), (t + 1e4).float(), ws, wt).item()
    assert far == pytest.approx(expected, rel=1e-2)
    assert nn.mean_distance(s, t, torch.zeros(8), wt).item() == 0.0


def test_mmd2_is_the_loop() -> None:
    s, t = draw(7, 3, 17), draw(5, 3, 18, shift=0.4)
    ws, wt = draw_weights(7, 19), draw_weights(5, 20)
    for a, b in ((ws, wt), (torch.ones(7), torch.ones(5))):
        expected = loop_joint_mmd2(
            [(s.tolist(), t.tolist())], a.tolist(), b.tolist(), [POWERS], [None]
        )
        assert nn.mmd2(s, t, a, b).item() == pytest.approx(expected, rel=1e-9)
    expected = loop_joint_mmd2(
        [(s.tolist(), t.tolist())], [1.0] * 7, [1.0] * 5, [range(2, 4)], [None]
    )
    assert nn.mmd2(s, t, powers=range(2, 4)).item() == pytest.approx(expected, rel=1e-9)


def test_joint_mmd2_is_the_loop() -> None:
    s = (draw(6, 3, 21), draw(6, 2, 22))
    t = (draw(4, 3, 23, shift=0.4), draw(4, 2, 24))
    ws, wt = draw_weights(6, 25), draw_weights(4, 26)
    powers, bandwidths = (POWERS, range(1)), (None, 0.84)
    layers = [(a.tolist(), b.tolist()) for a, b in zip(s, t, strict=True)]
    expected = loop_joint_mmd2(layers, ws.tolist(), wt.tolist(), powers, bandwidths)
    found = nn.joint_mmd2(s, t, ws, wt, powers=powers, bandwidths=bandwidths)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_joint_mmd2_gradient_with_fixed_bandwidths() -> None:
    layers = (draw(4, 3, 27), draw(4, 2, 28), draw(3, 3, 29, 1.0), draw(3, 2, 30))
    ws, wt = draw_weights(4, 31), draw_weights(3, 32)

    def loss(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return nn.joint_mmd2(
            (a, b), (c, d), ws, wt, powers=(range(-1, 2), range(1)), bandwidths=(2.5, 0.84)
        )

    assert torch.autograd.gradcheck(loss, tuple(x.requires_grad_() for x in layers))


def autograd_mmd2(s: Tensor, t: Tensor, ws: Tensor, wt: Tensor) -> Tensor:
    """MMD through autograd and one exponential a kernel, the mean distance held constant."""
    x = torch.cat([s, t])
    c = torch.cat([ws / ws.sum(), -wt / wt.sum()])
    d = (x[:, None] - x[None]).square().sum(2)
    mean = (c.abs()[:, None] * c.abs() * d).sum().detach() / 4
    kernel = sum((torch.exp(-d / (2 * 2.0**k * mean)) for k in POWERS), torch.zeros_like(d))
    return c @ kernel @ c


def test_mmd2_gradient_is_that_of_autograd() -> None:
    ws, wt = draw_weights(6, 33), draw_weights(9, 34)
    grads = []
    for function in (autograd_mmd2, nn.mmd2):
        s, t = draw(6, 4, 35).requires_grad_(), draw(9, 4, 36, 0.5).requires_grad_()
        grads.append(torch.autograd.grad(3.0 * function(s, t, ws, wt), (s, t)))
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tile", [1, 3, 8, 15])  # 17 rows: single rows, ragged tiles, two tiles
def test_tiles_change_neither_value_nor_gradient(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, wt = draw_weights(8, 76), draw_weights(9, 77)
    layers = [draw(n, d, 78 + d, shift) for d in (5, 2) for n, shift in ((8, 0.0), (9, 0.5))]

    def found() -> tuple[Tensor, ...]:
        s1, t1, s2, t2 = (x.clone().requires_grad_() for x in layers)
        powers, bandwidths = (POWERS, range(2)), (None, 0.84)
        value = nn.joint_mmd2((s1, s2), (t1, t2), ws, wt, powers=powers, bandwidths=bandwidths)
        return value, *torch.autograd.grad(value, (s1, t1, s2, t2))

    whole = found()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(kernels, "_CPU_TILE", tile)
    for expected, tiled in zip(whole, found(), strict=True):
        torch.testing.assert_close(tiled, expected)


def test_mmd2_of_several_tiles_is_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(kernels, "_CPU_TILE", 16)
    s, t = draw(30, 2, 80), draw(25, 2, 81, shift=0.4)
    ws, wt = draw_weights(30, 82), draw_weights(25, 83)
    expected = loop_joint_mmd2(
        [(s.tolist(), t.tolist())], ws.tolist(), wt.tolist(), [POWERS], [None]
    )
    assert nn.mmd2(s, t, ws, wt).item() == pytest.approx(expected, rel=1e-9)


def test_joint_mmd2_gradient_of_some_layers_alone() -> None:
    s, t = (draw(5, 3, 84), draw(5, 2, 85)), (draw(4, 3, 86, 0.5), draw(4, 2, 87))

    def loss() -> Tensor:
        return nn.joint_mmd2(s, t, powers=(POWERS, range(1)), bandwidths=(None, 0.84))

    for x in (*s, *t):
        x.requires_grad_()
    every = torch.autograd.grad(loss(), (*s, *t))
    for x in (s[0], s[1], t[0]):
        x.requires_grad_(False)
    (alone,) = torch.autograd.grad(loss(), (t[1],))
    torch.testing.assert_close(alone, every[3])


def test_mmd2_gradient_of_one_domain_alone() -> None:
    s, t = draw(4, 3, 37), draw(5, 3, 38).requires_grad_()
    both = draw(4, 3, 37).requires_grad_()
    (alone,) = torch.autograd.grad(nn.mmd2(s, t), (t,))
    _, expected = torch.autograd.grad(nn.mmd2(both, t), (both, t))
    torch.testing.assert_close(alone, expected)


def test_entropy_is_the_loop() -> None:
    logits = 3 * draw(5, 4, 59)
    for row, found in zip(logits.tolist(), nn.entropy(logits).tolist(), strict=True):
        total = sum(math.exp(v) for v in row)
        shares = [math.exp(v) / total for v in row]
        assert found == pytest.approx(-sum(p * math.log(p) for p in shares))
    extreme = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    value = nn.entropy(extreme)
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0.0
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


def test_domain_bce_is_the_loop() -> None:
    s, t = 2 * draw(5, 1, 60)[:, 0], 2 * draw(3, 1, 61)[:, 0]
    ws, wt = draw_weights(5, 62), draw_weights(3, 63)

    def side(logits: Tensor, weights: Tensor, source: bool) -> float:
        total = 0.0
        for logit, w in zip(logits.tolist(), weights.tolist(), strict=True):
            p = 1 / (1 + math.exp(-logit))
            total -= w * math.log(p if source else 1 - p)
        return total / float(weights.sum())

    expected = 0.5 * (side(s, ws, True) + side(t, wt, False))
    assert nn.domain_bce(s, t, ws, wt).item() == pytest.approx(expected)
    assert nn.domain_bce(torch.zeros(4), torch.zeros(9)).item() == pytest.approx(math.log(2))
    assert nn.domain_bce(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(1e4)
    inputs = (s.requires_grad_(), t.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: nn.domain_bce(a, b, ws, wt), inputs)
    only_target = nn.domain_bce(s, t, torch.zeros(5), wt).item()
    assert only_target == pytest.approx(0.5 * side(t, wt, False))


@pytest.mark.parametrize("coefficient", [1, 0.5, 0.0])
def test_gradient_reversal(coefficient: float) -> None:
    x = draw(3, 2, 64).requires_grad_()
    y = nn.gradient_reversal(x, coefficient)
    assert torch.equal(y, x)
    (grad,) = torch.autograd.grad((y**3).sum(), (x,))
    torch.testing.assert_close(grad, -coefficient * 3 * x.detach() ** 2)


def test_ramp_values() -> None:
    assert nn.ramp(0.0) == 0.0
    for p in (0.05, 0.3, 1.0):
        assert nn.ramp(p) == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1)
    assert nn.ramp(0.1, gamma=1e4) == 1.0


def test_multilinear_map_is_the_loop() -> None:
    f, g = draw(3, 4, 65), torch.softmax(draw(3, 2, 66), 1)
    found = nn.multilinear_map(f, g)
    expected = [[float(a * b) for a in f[i] for b in g[i]] for i in range(3)]
    torch.testing.assert_close(found.tolist(), expected)


def test_random_multilinear_map_keeps_inner_products_on_average() -> None:
    f, g = draw(2, 5, 67), torch.softmax(draw(2, 3, 68), 1)
    mapped = nn.random_multilinear_map(f, g, draw(5, 200_000, 69), draw(3, 200_000, 70))
    exact = nn.multilinear_map(f, g)
    assert mapped.shape == (2, 200_000)
    torch.testing.assert_close(mapped @ mapped.T, exact @ exact.T, rtol=0.05, atol=0.02)


@pytest.mark.filterwarnings("ignore")
def test_against_pytorch_adapt() -> None:
    layers = pytest.importorskip("pytorch_adapt.layers")
    s, t = draw(9, 4, 71), draw(9, 4, 72, 0.4)
    coral = layers.CORALLoss()(s, t)
    torch.testing.assert_close(nn.covariance_distance(s, t) / (4 * 4**2), coral)

    # Its quadratic form leaves out the diagonal and averages kernels: put both back.
    base = 2.0
    scales = torch.tensor([0.5**k / 2 for k in range(3)], dtype=torch.float64)
    mmd = layers.MMDLoss(kernel_scales=scales, mmd_type="quadratic", bandwidth=base)
    found = nn.joint_mmd2((s,), (t,), powers=(range(3),), bandwidths=(base,))
    d = [torch.cdist(a, b).square() for a, b in ((s, s), (t, t))]
    off = [
        sum(float(torch.exp(-x * scale / base).sum() - 9) for scale in scales) / (9 * 8) for x in d
    ]
    v_from_u = 3 * float(mmd(s, t)) + sum(3 / 9 - o / 9 for o in off)
    assert found.item() == pytest.approx(v_from_u)

    dot = layers.RandomizedDotProduct([4, 3], 16)
    g = torch.softmax(draw(9, 3, 73), 1).float()
    expected = dot(s.float(), g)
    found = nn.random_multilinear_map(s.float(), g, dot.rand_mat0, dot.rand_mat1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(nn.entropy(s), layers.EntropyLoss(return_mean=False)(s))
