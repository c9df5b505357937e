"""MMD and joint MMD against the formulas in plain loops, and faults of other implementations."""

from __future__ import annotations

import math

import pytest
import torch

from daptkit.errors import UsageError
from daptkit.method import DomainBatch, Method
from daptkit.plugin import build_options
from daptkit.testing import (
    assert_global_batch,
    gap_of_means,
    imports_torch,
    make_batch,
    make_step,
    make_task,
)
from daptkit_mmd.jmmd import JMMD, jmmd_loss
from daptkit_mmd.mmd import MMD, mmd_loss
from daptkit_mmd.plugin import JMMDOptions, MMDOptions, daptkit_methods

KEYS = {"mmd": "mmd", "jmmd": "joint_mmd"}


def build(name: str, *, weight: float = 1.0, **values: float) -> Method:
    if name == "mmd":
        return MMD(MMDOptions(weight=weight, **values), make_task())  # type: ignore[arg-type]
    return JMMD(JMMDOptions(weight=weight, **values), make_task())  # type: ignore[arg-type]


@pytest.fixture(params=["mmd", "jmmd"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def method(name: str) -> Method:
    return build(name, ramp=False)


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def squared(x: list[float], y: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def loop_loss(name: str, source: DomainBatch, target: DomainBatch) -> float:
    ws, wt = source.weights.tolist(), target.weights.tolist()
    c = [w / sum(ws) for w in ws] + [-w / sum(wt) for w in wt]
    f = source.features.tolist() + target.features.tolist()
    p = [softmax(g) for g in source.logits.tolist() + target.logits.tolist()]
    pairs = [(i, j) for i in range(len(c)) for j in range(len(c))]
    mean = sum(abs(c[i] * c[j]) / 4 * squared(f[i], f[j]) for i, j in pairs)
    total = 0.0
    for i, j in pairs:
        d = squared(f[i], f[j])
        kernel = sum(math.exp(-d / (2 * 2.0**k * mean)) for k in range(-3, 2))
        if name == "jmmd":
            kernel *= math.exp(-squared(p[i], p[j]) / 1.68)
        total += c[i] * c[j] * kernel
    return total


def test_loss_is_the_loop(name: str, method: Method) -> None:
    source = make_batch(7, 1, weights=torch.tensor([0.3, 2.0, 1.0, 0.0, 1.5, 1.0, 0.7]))
    target = make_batch(4, 2, shift=0.5, weights=torch.tensor([1.0, 2.0, 1.0, 0.5]))
    losses = method.losses(source, target, make_step())
    assert set(losses) == {KEYS[name]}
    assert losses[KEYS[name]].item() == pytest.approx(loop_loss(name, source, target), rel=1e-4)


@pytest.mark.parametrize("progress", [0.0, 0.2, 1.0])
def test_weight_and_ramp(name: str, progress: float) -> None:
    source, target = make_batch(6, 3), make_batch(5, 4, shift=1.0)
    constant = build(name, ramp=False).losses(source, target, make_step(progress))
    ramped = build(name, weight=3.0).losses(source, target, make_step(progress))
    factor = 3 * (2 / (1 + math.exp(-10 * progress)) - 1)
    key = KEYS[name]
    assert constant[key].item() > 0
    assert ramped[key].item() == pytest.approx(factor * constant[key].item(), rel=1e-5)


def test_kernel_options_reach_the_loss(name: str) -> None:
    source, target = make_batch(6, 5), make_batch(5, 6, shift=1.0)
    variants: list[dict[str, float]] = [{}, {"k_min": 0}, {"k_max": 3}]
    if name == "jmmd":
        variants.append({"class_bandwidth": 0.1})
    values = {
        build(name, **v).losses(source, target, make_step())[KEYS[name]].item() for v in variants
    }
    assert len(values) == len(variants)


def test_joint_gradient_reaches_features_and_logits() -> None:
    """No bandwidth depends on the logits, so finite differences hold for them."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (5, 4)]
    features = [torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (5, 4)]

    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return jmmd_loss((features[0], a), (features[1], b))

    assert torch.autograd.gradcheck(loss, tuple(x.requires_grad_() for x in logits))
    features[0].requires_grad_()
    (grad,) = torch.autograd.grad(loss(*logits), (features[0],))
    assert grad.any()


def test_gradient_moves_a_shifted_sample_back() -> None:
    generator = torch.Generator().manual_seed(1)
    s = torch.randn(50, 3, generator=generator)
    t = (torch.randn(40, 3, generator=generator) + torch.tensor([2.0, 0, 0])).requires_grad_()
    (grad,) = torch.autograd.grad(mmd_loss(s, t), (t,))
    assert grad[:, 0].sum() > 0
    assert grad[:, 0].sum() > 5 * grad[:, 1:].sum(0).abs().max()


def test_integer_weights_are_repeated_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    s, t = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    gs, gt = (torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    ns, nt = torch.tensor([2, 0, 1, 3]), torch.tensor([1, 1, 4, 2])

    def repeat(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(n, 0)

    torch.testing.assert_close(mmd_loss(s, t, ns, nt), mmd_loss(repeat(s, ns), repeat(t, nt)))
    torch.testing.assert_close(
        jmmd_loss((s, gs), (t, gt), ns, nt),
        jmmd_loss((repeat(s, ns), repeat(gs, ns)), (repeat(t, nt), repeat(gt, nt))),
    )


def test_joint_loss_sees_swapped_classes_that_features_hide() -> None:
    source, target = make_batch(20, 7), make_batch(20, 7)
    target.logits.data = target.logits.data[:, [1, 2, 0]]
    step = make_step()
    assert build("mmd").losses(source, target, step)["mmd"].item() < 1e-5
    assert build("jmmd").losses(source, target, step)["joint_mmd"].item() > 0.01


def test_constant_logits_make_the_joint_loss_the_plain_one() -> None:
    s, t, g = make_batch(6, 8).features, make_batch(5, 9, shift=1.0).features, torch.zeros(6, 3)
    torch.testing.assert_close(jmmd_loss((s, g), (t, g[:5])), mmd_loss(s, t))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(name: str, method: Method, dtype: torch.dtype) -> None:
    full = method.losses(make_batch(9, 10), make_batch(7, 11, shift=1.0), make_step())
    half = make_batch(9, 10, dtype=dtype), make_batch(7, 11, shift=1.0, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method.losses(*half, make_step())[KEYS[name]]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(full[KEYS[name]].item(), rel=0.05)
    (grad,) = torch.autograd.grad(loss, (half[0].features,))
    assert grad.isfinite().all()


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 6), (6, 1)])
def test_batch_of_one(name: str, method: Method, n: int, m: int) -> None:
    source, target = make_batch(n, 12), make_batch(m, 13)
    loss = method.losses(source, target, make_step())[KEYS[name]]
    grads = torch.autograd.grad(loss, [source.features, target.features])
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.parametrize("value", [0.0, 7.7, 1e4])
def test_collapsed_features_give_zero(name: str, method: Method, value: float) -> None:
    source, target = make_batch(5, 14), make_batch(4, 15)
    for batch in (source, target):
        batch.features.data.fill_(value)
        batch.logits.data.fill_(0.0)
    loss = method.losses(source, target, make_step())[KEYS[name]]
    grads = torch.autograd.grad(loss, [source.features, target.features])
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert all(g.isfinite().all() for g in grads)


def test_no_source_weight_gives_zero(name: str, method: Method) -> None:
    source, target = make_batch(5, 16, weights=torch.zeros(5)), make_batch(4, 17)
    loss = method.losses(source, target, make_step())[KEYS[name]]
    (grad,) = torch.autograd.grad(loss, [target.features])
    assert loss.item() == 0.0
    assert not grad.any()


def test_two_processes_find_the_loss_of_the_whole_batch(method: Method) -> None:
    assert_global_batch(method)


def test_following_the_loss_closes_a_gap_of_means(method: Method) -> None:
    before, after = gap_of_means(method)
    assert after < 0.1 * before


def test_specifications_and_bounds() -> None:
    specs = {spec.name: spec for spec in daptkit_methods()}
    assert set(specs) == {"mmd", "jmmd"}
    for name, spec in specs.items():
        with pytest.raises(UsageError, match=f"{name}.weight"):
            build_options(spec.options, {"weight": -1}, f"{name}.")
        with pytest.raises(UsageError, match="k_min"):
            build_options(spec.options, {"k_min": 2}, f"{name}.")
    with pytest.raises(UsageError, match="class_bandwidth"):
        build_options(specs["jmmd"].options, {"class_bandwidth": 0}, "jmmd.")


def test_torch_free_half_imports_no_torch() -> None:
    assert not imports_torch("daptkit_mmd.plugin")
