"""CDAN against the formula in plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from daptkit.method import DomainBatch
from daptkit.testing import assert_global_batch, gap_of_means, make_batch, make_step, make_task
from daptkit_dann.cdan import CDAN, entropy_weights
from daptkit_dann.plugin import CDANOptions


@pytest.fixture(params=["outer", "random"])
def method(request: pytest.FixtureRequest) -> CDAN:
    torch.manual_seed(0)
    limit = 4096 if request.param == "outer" else 10
    return CDAN(CDANOptions(hidden=16, random_dim=32, outer_limit=limit), make_task())


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def loop_map(method: CDAN, f: list[float], p: list[float]) -> list[float]:
    if method.feature_matrix is None or method.class_matrix is None:
        return [a * b for a in f for b in p]
    rf, rg = method.feature_matrix.tolist(), method.class_matrix.tolist()
    return [
        sum(a * rf[i][r] for i, a in enumerate(f))
        * sum(b * rg[i][r] for i, b in enumerate(p))
        / math.sqrt(32)
        for r in range(32)
    ]


def loop_loss(method: CDAN, source: DomainBatch, target: DomainBatch) -> float:
    total = 0.0
    for batch, sign in ((source, -1.0), (target, 1.0)):
        values, weights = [], []
        for f, g, w in zip(
            batch.features.tolist(), batch.logits.tolist(), batch.weights.tolist(), strict=True
        ):
            p = softmax(g)
            logit = method.discriminator(torch.tensor([loop_map(method, f, p)])).item()
            values.append(math.log(1 + math.exp(sign * logit)))
            weights.append(w * (1 + math.exp(sum(q * math.log(q) for q in p))))
        # Weights of mean 1 over the batch, as the paper normalises them.
        mean = sum(weights) / len(weights)
        total += 0.5 * sum(w / mean * v for w, v in zip(weights, values, strict=True)) / len(values)
    return total


def test_loss_is_the_loop(method: CDAN) -> None:
    source = make_batch(5, 1, weights=torch.tensor([0.3, 2.0, 1.0, 0.0, 1.5]))
    target = make_batch(3, 2, shift=1.0)
    losses = method.losses(source, target, make_step())
    assert set(losses) == {"domain"}
    assert losses["domain"].item() == pytest.approx(loop_loss(method, source, target), rel=1e-4)


def test_entropy_weights_favour_confident_rows() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]], requires_grad=True)
    found = entropy_weights(logits, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([1 + 1 / 3, 6.0]))
    assert not found.requires_grad


def test_without_entropy_weights_are_those_of_the_batch() -> None:
    method = CDAN(CDANOptions(hidden=16, entropy=False), make_task())
    batch = make_batch(3, 3, weights=torch.tensor([1.0, 2.0, 0.5]))
    assert torch.equal(method.image_weights(batch), batch.weights)


def test_gradient_reaches_features_reversed_and_not_logits(method: CDAN) -> None:
    source, target = make_batch(5, 4), make_batch(4, 5, shift=1.0)
    loss = method.losses(source, target, make_step(0.3))["domain"]
    reversed_, logit_grad = torch.autograd.grad(
        loss, [source.features, source.logits], allow_unused=True
    )
    assert logit_grad is None
    step = 1e-2
    with torch.no_grad():  # the loss must rise along the model's own descent direction
        source.features.sub_(step * reversed_ / reversed_.norm())
        moved = method.losses(source, target, make_step(0.3))["domain"]
    factor = 2 / (1 + math.exp(-3)) - 1
    assert (moved - loss).item() == pytest.approx(step * reversed_.norm().item() / factor, rel=0.1)


def test_condition_distinguishes_classes(method: CDAN) -> None:
    source, target = make_batch(5, 6), make_batch(5, 6)
    same = method.losses(source, target, make_step())["domain"].item()
    target.logits.data = target.logits.data[:, [1, 2, 0]]
    assert method.losses(source, target, make_step())["domain"].item() != pytest.approx(same)


def test_size_of_the_map_follows_the_limit() -> None:
    exact = CDAN(CDANOptions(hidden=4, outer_limit=18), make_task())
    assert exact.discriminator.first.in_features == 18
    assert not list(exact.buffers())
    random = CDAN(CDANOptions(hidden=4, outer_limit=17, random_dim=20), make_task())
    assert random.discriminator.first.in_features == 20
    assert {name for name, _ in random.named_buffers()} == {"feature_matrix", "class_matrix"}
    assert {"feature_matrix", "class_matrix"} <= set(random.state_dict())


def test_random_map_follows_the_seed() -> None:
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(CDAN(CDANOptions(hidden=4, outer_limit=0), make_task()).state_dict())
    assert torch.equal(drawn[0]["feature_matrix"], drawn[1]["feature_matrix"])
    assert not torch.equal(drawn[0]["feature_matrix"], drawn[2]["feature_matrix"])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unequal_and_single_batches_in_both_precisions(
    method: CDAN, n: int, m: int, dtype: torch.dtype
) -> None:
    source, target = make_batch(n, 7, dtype=dtype), make_batch(m, 8, dtype=dtype)
    full = method.losses(make_batch(n, 7), make_batch(m, 8), make_step())["domain"].item()
    loss = method.losses(source, target, make_step())["domain"]
    grads = torch.autograd.grad(loss, [source.features, target.features])
    assert loss.item() == pytest.approx(full, abs=0.02)
    assert all(g.isfinite().all() and g.any() for g in grads)


def test_saturated_logits_and_zero_weights_are_finite(method: CDAN) -> None:
    source, target = make_batch(4, 9, weights=torch.zeros(4)), make_batch(4, 10)
    target.logits.data *= 1e4
    loss = method.losses(source, target, make_step())["domain"]
    grads = torch.autograd.grad(loss, [source.features, target.features])
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in grads)


def test_two_processes_find_the_loss_of_the_whole_batch(method: CDAN) -> None:
    assert_global_batch(method)


def test_following_the_loss_closes_a_gap_of_means(method: CDAN) -> None:
    before, after = gap_of_means(method)
    assert after < 0.5 * before
