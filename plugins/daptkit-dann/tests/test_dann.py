"""DANN against the formula in plain loops, and the faults of other implementations."""

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
from daptkit_dann.dann import DANN
from daptkit_dann.plugin import DANNOptions, daptkit_methods


@pytest.fixture
def method() -> DANN:
    torch.manual_seed(0)
    return DANN(DANNOptions(hidden=16), make_task())


def loop_loss(method: DANN, source: DomainBatch, target: DomainBatch) -> float:
    total = 0.0
    for batch, sign in ((source, -1.0), (target, 1.0)):
        logits = method.discriminator(batch.features).tolist()
        w = batch.weights.tolist()
        terms = [wi * math.log(1 + math.exp(sign * x)) for wi, x in zip(w, logits, strict=True)]
        total += 0.5 * sum(terms) / sum(w)
    return total


def test_loss_is_the_loop(method: DANN) -> None:
    weights = torch.tensor([0.3, 2.0, 1.0, 0.0, 1.5])
    source, target = make_batch(5, 1, weights=weights), make_batch(3, 2, shift=1.0)
    losses = method.losses(source, target, make_step())
    assert set(losses) == {"domain"}
    assert losses["domain"].item() == pytest.approx(loop_loss(method, source, target), rel=1e-5)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 1.0), (0.1, 1.0), (0.7, 0.3), (1.0, 2.0)])
def test_feature_gradient_is_minus_lambda_times_the_discriminators(
    progress: float, weight: float
) -> None:
    method = DANN(DANNOptions(hidden=16, weight=weight), make_task())
    source, target = make_batch(5, 3), make_batch(4, 4, shift=1.0)
    features = [source.features, target.features]
    parameters = list(method.parameters())
    plain = torch.autograd.grad(
        0.5
        * (
            torch.nn.functional.softplus(-method.discriminator(features[0])).mean()
            + torch.nn.functional.softplus(method.discriminator(features[1])).mean()
        ),
        [*features, *parameters],
    )
    loss = method.losses(source, target, make_step(progress))["domain"]
    found = torch.autograd.grad(loss, [*features, *parameters])
    factor = weight * (2 / (1 + math.exp(-10 * progress)) - 1)
    for a, b in zip(found[:2], plain[:2], strict=True):
        assert b.abs().max() > 1e-4  # a Softmax over one unit would make it exactly 0
        torch.testing.assert_close(a, -factor * b)
    torch.testing.assert_close(found[2:], plain[2:])  # the discriminator learns at full rate


def test_integer_weights_are_repeated_rows(method: DANN) -> None:
    source, target = make_batch(4, 5), make_batch(3, 6)
    rows = torch.tensor([0, 0, 2, 3, 3, 3])  # weights 2, 0, 1, 3
    repeated = make_batch(6, 5)
    repeated.features.data = source.features.data[rows]
    weighted = make_batch(4, 5, weights=torch.tensor([2.0, 0.0, 1.0, 3.0]))
    expected = method.losses(repeated, target, make_step())["domain"]
    torch.testing.assert_close(method.losses(weighted, target, make_step())["domain"], expected)


def test_loss_depends_on_the_target_and_its_weights(method: DANN) -> None:
    source = make_batch(5, 7)
    found = {
        method.losses(source, target, make_step())["domain"].item()
        for target in (
            make_batch(3, 8),
            make_batch(3, 9),
            make_batch(3, 9, weights=torch.tensor([5.0, 1.0, 1.0])),
        )
    }
    assert len(found) == 3


def test_discriminator_accuracy_is_weighted_and_balanced(method: DANN) -> None:
    logged: dict[str, torch.Tensor] = {}
    weights = torch.tensor([4.0, 1.0, 1.0, 0.0])
    source, target = make_batch(4, 10, weights=weights), make_batch(3, 11)
    method.losses(source, target, make_step(log=logged.__setitem__))
    right_s = [float(x > 0) for x in method.discriminator(source.features)]
    right_t = [float(x <= 0) for x in method.discriminator(target.features)]
    expected = 0.5 * (
        sum(w * r for w, r in zip(weights.tolist(), right_s, strict=True)) / 6 + sum(right_t) / 3
    )
    assert logged["discriminator_accuracy"].item() == pytest.approx(expected)
    assert not logged["discriminator_accuracy"].requires_grad


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (6, 2)])
def test_unequal_and_single_batches(method: DANN, n: int, m: int) -> None:
    source, target = make_batch(n, 12), make_batch(m, 13)
    loss = method.losses(source, target, make_step())["domain"]
    grads = torch.autograd.grad(loss, [source.features, target.features])
    assert all(g.isfinite().all() and g.any() for g in grads)


def test_zero_weights_and_constant_features_are_finite(method: DANN) -> None:
    source, target = make_batch(4, 14, weights=torch.zeros(4)), make_batch(4, 15)
    source.features.data.fill_(2.0)
    target.features.data.fill_(2.0)
    loss = method.losses(source, target, make_step())["domain"]
    grads = torch.autograd.grad(loss, [source.features, target.features])
    assert loss.isfinite()
    assert not grads[0].any()
    assert grads[1].isfinite().all()


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16_is_close(method: DANN, autocast: bool) -> None:
    half = make_batch(5, 16, dtype=torch.bfloat16), make_batch(5, 17, dtype=torch.bfloat16)
    full = make_batch(5, 16), make_batch(5, 17)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = method.losses(*half, make_step())["domain"]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(
        method.losses(*full, make_step())["domain"].item(), abs=0.01
    )


def test_two_processes_find_the_loss_of_the_whole_batch(method: DANN) -> None:
    assert_global_batch(method)


def test_following_the_loss_closes_a_gap_of_means(method: DANN) -> None:
    before, after = gap_of_means(method)
    assert after < 0.2 * before


@pytest.mark.parametrize(("progress", "p"), [(0.0, 0.0), (0.3, 0.0), (0.65, 0.5), (1.0, 1.0)])
def test_after_the_delay_the_ramp_takes_the_rest_of_the_run(progress: float, p: float) -> None:
    method = DANN(DANNOptions(hidden=16, weight=0.5, delay=0.3), make_task())
    wanted = 0.5 * (2 / (1 + math.exp(-10 * p)) - 1)
    assert method.coefficient(make_step(progress=progress)) == pytest.approx(wanted)


def test_the_discriminator_learns_during_the_delay() -> None:
    method = DANN(DANNOptions(hidden=16, delay=0.3), make_task())
    source, target = make_batch(5, 3), make_batch(4, 4, shift=1.0)
    loss = method.losses(source, target, make_step(progress=0.2))["domain"]
    moved = torch.autograd.grad(loss, [*method.parameters(), source.features])
    assert all(g.abs().max() > 0 for g in moved[:-1])
    assert moved[-1].abs().max() == 0


def test_discriminator_has_no_batch_statistics(method: DANN) -> None:
    features = make_batch(6, 18).features
    alone = torch.cat([method.discriminator(row[None]) for row in features])
    torch.testing.assert_close(method.discriminator(features), alone)


def test_dropout_and_learning_rate_reach_the_discriminator() -> None:
    method = DANN(DANNOptions(hidden=16, dropout=0.5, lr_scale=3.0), make_task())
    x = torch.ones(2, 6)
    assert not torch.equal(method.discriminator(x), method.discriminator(x))
    method.eval()
    torch.testing.assert_close(method.discriminator(x), method.discriminator(x))
    (group,) = method.param_groups()
    assert group["lr_scale"] == 3.0
    assert len(group["params"]) == 6


def test_specifications_and_bounds() -> None:
    specs = {spec.name: spec for spec in daptkit_methods()}
    assert set(specs) == {"dann", "cdan"}
    assert build_options(specs["dann"].options, {"hidden": "32"}).hidden == 32
    for name, value in (("weight", -1), ("gamma", 0), ("hidden", 0), ("dropout", 1), ("delay", 1)):
        with pytest.raises(UsageError, match=f"dann.{name}"):
            build_options(specs["dann"].options, {name: value}, "dann.")


def test_torch_free_half_imports_no_torch() -> None:
    assert not imports_torch("daptkit_dann.plugin")
