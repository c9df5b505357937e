"""What every distance of two domains keeps: weights, precision, odd batches, label shift."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from daptkit import nn
from nn_loops import draw, draw_weights

Distance = Callable[..., Tensor]
DISTANCES = [nn.mmd2, nn.covariance_distance, nn.mean_distance]


@pytest.mark.parametrize("distance", [nn.covariance_distance, nn.mean_distance])
@pytest.mark.parametrize("d", [2, 12])
def test_moment_distances_have_their_gradient(distance: Distance, d: int) -> None:
    s, t = draw(5, d, 39).requires_grad_(), draw(4, d, 40, 0.5).requires_grad_()
    ws, wt = draw_weights(5, 41), draw_weights(4, 42)
    assert torch.autograd.gradcheck(lambda a, b: distance(a, b, ws, wt), (s, t))


@pytest.mark.parametrize("d", [2, 12])
def test_moment_distances_can_be_differentiated_twice(d: int) -> None:
    s, t = draw(5, d, 60).requires_grad_(), draw(4, d, 61, 0.5).requires_grad_()
    ws, wt = draw_weights(5, 62), draw_weights(4, 63)
    for distance in (nn.covariance_distance, nn.mean_distance):
        assert torch.autograd.gradgradcheck(partial(distance, source_weights=ws), (s, t))
        assert torch.autograd.gradgradcheck(partial(distance, target_weights=wt), (s, t))


def test_mmd2_refuses_a_second_derivative() -> None:
    s = draw(5, 3, 64).requires_grad_()
    (grad,) = torch.autograd.grad(nn.mmd2(s, draw(4, 3, 65)), (s,), create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(grad.sum(), (s,))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("d", [2, 40])
def test_a_second_backward_finds_the_same_gradient(distance: Distance, d: int) -> None:
    s, t = draw(5, d, 66).requires_grad_(), draw(4, d, 67, 0.5)
    loss = distance(s, t)
    (first,) = torch.autograd.grad(loss, (s,), retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(3.0 * loss, (s,))
    torch.testing.assert_close(second, 3.0 * kept)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("d", [2, 40])
def test_inputs_are_left_as_they_are(distance: Distance, d: int) -> None:
    s, t, ws = draw(5, d, 68, 3.0), draw(4, d, 69), draw_weights(5, 70).requires_grad_()
    before = [x.clone() for x in (s, t, ws)]
    loss = distance(s.requires_grad_(), t, ws)
    torch.autograd.grad(loss, (s,))
    for x, expected in zip((s, t, ws), before, strict=True):
        torch.testing.assert_close(x, expected, rtol=0.0, atol=0.0)
    (of_weights,) = torch.autograd.grad(distance(s, t, ws), (ws,), allow_unused=True)
    assert of_weights is None


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("d", [2, 40])
def test_integer_weights_are_repeated_rows(distance: Distance, d: int) -> None:
    s, t = draw(5, d, 43), draw(4, d, 44, 0.5)
    ns, nt = torch.tensor([2, 1, 3, 1, 2]), torch.tensor([1, 4, 1, 1])
    repeated = distance(s.repeat_interleave(ns, 0), t.repeat_interleave(nt, 0))
    torch.testing.assert_close(distance(s, t, ns, nt), repeated)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("d", [2, 40])
def test_a_row_of_weight_zero_is_left_out(distance: Distance, d: int) -> None:
    s, t = draw(6, d, 45).requires_grad_(), draw(5, d, 46, 0.5)
    t[3] = 1e3
    keep_s, keep_t = torch.tensor([1.0, 1, 0, 1, 1, 1]), torch.tensor([1.0, 1, 1, 0, 1])
    found = distance(s, t, keep_s, keep_t)
    torch.testing.assert_close(found, distance(s[keep_s > 0], t[keep_t > 0]))
    (grad,) = torch.autograd.grad(found, (s,))
    assert torch.equal(grad[2], torch.zeros(d, dtype=torch.float64))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [3, 64])
def test_half_precision_in_float32_inside(distance: Distance, dtype: torch.dtype, d: int) -> None:
    s = (300 * draw(10, d, 47)).to(dtype).requires_grad_()  # its square overflows float16
    t = (300 * draw(8, d, 48, 0.3)).to(dtype)
    found = distance(s, t)
    assert found.dtype == torch.float32
    exact = distance(s.detach().double(), t.double())
    assert found.item() == pytest.approx(exact.item(), rel=1e-4)
    (grad,) = torch.autograd.grad(found / found.detach(), (s,))
    assert grad.dtype == dtype
    assert grad.isfinite().all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("d", [3, 64])
def test_autocast_changes_nothing(distance: Distance, d: int) -> None:
    s, t = draw(10, d, 49).float(), draw(8, d, 50, 0.3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distance(s, t)
    assert torch.equal(inside, distance(s, t))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("value", [0.0, 3.3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [4, 64])
def test_collapsed_features_give_zero(
    distance: Distance, value: float, dtype: torch.dtype, d: int
) -> None:
    s = torch.full((6, d), value, dtype=dtype, requires_grad=True)
    loss = distance(s, torch.full((4, d), value, dtype=dtype), torch.linspace(0.1, 2, 6))
    (grad,) = torch.autograd.grad(loss, (s,))
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert grad.abs().max() < 1e-2


@pytest.mark.parametrize("distance", DISTANCES)
def test_one_collapsed_domain_is_finite(distance: Distance) -> None:
    s = draw(6, 4, 51).float().requires_grad_()
    t = torch.zeros(4, 4, requires_grad=True)
    loss = distance(s, t)
    grads = torch.autograd.grad(loss, (s, t))
    assert loss.item() > 0
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("d", [2, 40])
def test_batch_of_one(distance: Distance, n: int, m: int, d: int) -> None:
    s = draw(n, d, 52).float().requires_grad_()
    t = draw(m, d, 53, 2.0).float().requires_grad_()
    loss = distance(s, t)
    grads = torch.autograd.grad(loss, (s, t))
    assert all(g.isfinite().all() for g in grads)
    if distance is nn.covariance_distance:
        assert loss.item() == 0.0
        assert not any(g.any() for g in grads)
    else:
        assert loss.item() > 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_domain_without_weight_gives_zero(distance: Distance) -> None:
    s, t = draw(4, 3, 54).float().requires_grad_(), draw(5, 3, 55).float()
    for ws, wt in ((torch.zeros(4), torch.ones(5)), (torch.ones(4), torch.zeros(5))):
        loss = distance(s, t, ws, wt)
        (grad,) = torch.autograd.grad(loss, (s,))
        assert loss.item() == 0.0
        assert torch.equal(grad, torch.zeros(4, 3))


@pytest.mark.parametrize("distance", DISTANCES)
def test_distance_of_a_sample_to_itself_is_zero_and_never_negative(distance: Distance) -> None:
    for d in (2, 64):
        s = draw(8, d, 56).float()
        assert 0.0 <= distance(s, s.clone()).item() < 1e-5


@pytest.mark.parametrize("distance", DISTANCES)
def test_rounding_never_makes_a_distance_negative(distance: Distance) -> None:
    for seed in range(20):
        s = draw(8, 64, seed).float()
        assert distance(s, s.flip(0) * (1 + 1e-5)).item() >= 0.0


@pytest.mark.parametrize("distance", DISTANCES)
def test_class_weights_remove_pure_label_shift(distance: Distance) -> None:
    """Both domains share p(x|y); only the classes' shares differ, .5/.5 against .9/.1."""
    n, labels = 400, torch.arange(400) % 2
    centre = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    s = draw(n, 2, 57).float() + centre[labels]
    t = draw(n, 2, 58).float() + centre[(torch.arange(n) % 10 == 0).long()]
    ratio = torch.tensor([0.9 / 0.5, 0.1 / 0.5])
    plain, weighted = distance(s, t).item(), distance(s, t, ratio[labels]).item()
    assert weighted < plain / 10


def test_nothing_is_read_back_from_the_device() -> None:
    """Fake tensors hold no values: any .item() or bool() in a loss raises."""
    with FakeTensorMode():
        s, t = torch.randn(6, 40, requires_grad=True), torch.randn(4, 40)
        ws, wt = torch.ones(6), torch.ones(4)
        with pytest.raises(DataDependentOutputException):
            bool(ws.sum() > 0)
        for distance in DISTANCES:
            torch.autograd.grad(distance(s, t, ws, wt), (s,))
            torch.autograd.grad(distance(s[:, :2], t[:, :2], ws, wt), (s,))
        reversed_ = nn.gradient_reversal(s, 0.5)
        torch.autograd.grad(nn.domain_bce(reversed_[:, 0], t[:, 0], ws, wt), (s,))
        torch.autograd.grad((nn.entropy(s) * nn.weighted_mean(s[:, 0], ws)).sum(), (s,))
