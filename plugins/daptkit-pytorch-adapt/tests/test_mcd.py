"""MCD: two heads that disagree on the target, and features that make them agree."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from daptkit.method import DomainBatch, Method, StepContext
from daptkit.testing import assert_global_batch, make_batch, make_step, make_task
from daptkit_pytorch_adapt.mcd import MCD, absolute_discrepancy, sliced_discrepancy
from daptkit_pytorch_adapt.plugin import MCDOptions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    layers = pytest.importorskip("pytorch_adapt.layers")


class Labelled(MCD):
    """Source labels come from the signs of the features, so that joined batches have them too."""

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, torch.Tensor]:
        assert source is not None
        labels = source.features.detach()[:, :3].argmax(1)
        generator = torch.Generator().manual_seed(3)
        ctx = replace(ctx, generator=generator)
        return super().losses(replace(source, labels=labels), target, ctx)


def method(**options: object) -> Labelled:
    torch.manual_seed(0)
    return Labelled(MCDOptions(hidden=8, **options), make_task())  # type: ignore[arg-type]


def test_discrepancies_are_the_loops() -> None:
    a, b = make_batch(5, 0).logits.detach(), make_batch(5, 1).logits.detach()
    p, q = torch.softmax(a, 1), torch.softmax(b, 1)
    wanted = sum(
        abs(x - y)
        for r, s in zip(p.tolist(), q.tolist(), strict=True)
        for x, y in zip(r, s, strict=True)
    )
    assert absolute_discrepancy(a, b).item() == pytest.approx(wanted / 15)
    torch.testing.assert_close(absolute_discrepancy(a, b), layers.MCDLoss()(a, b))
    directions = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    total = 0.0
    for r in directions.T.tolist():
        length = math.sqrt(sum(v * v for v in r))
        first, second = (
            sorted(sum(v * w for v, w in zip(row, r, strict=True)) / length for row in x.tolist())
            for x in (p, q)
        )
        total += sum((x - y) ** 2 for x, y in zip(first, second, strict=True))
    assert sliced_discrepancy(a, b, directions).item() == pytest.approx(total / 20, rel=1e-4)
    # The library draws 128 directions from the global generator, whatever m is.
    torch.manual_seed(4)
    theirs = layers.SlicedWasserstein(m=7)(p, q)
    torch.manual_seed(4)
    drawn = torch.randn(3, 128)
    torch.testing.assert_close(sliced_discrepancy(a, b, drawn), theirs)


@pytest.mark.parametrize("distance", ["l1", "sliced"])
def test_heads_and_features_want_the_opposite(distance: str) -> None:
    mcd = method(distance=distance, ramp=False, weight=2.0)
    target = make_batch(6, 2)
    losses = mcd.losses(make_batch(6, 3), target, make_step())
    assert set(losses) == {"heads", "discrepancy"}
    reversed_, *own = torch.autograd.grad(
        losses["discrepancy"], [target.features, *mcd.heads.parameters()], retain_graph=True
    )
    plain = target.features.detach().requires_grad_()
    first, second = (head(plain) for head in mcd.heads)
    if distance == "l1":
        apart = absolute_discrepancy(first, second)
    else:
        directions = torch.randn((3, 128), generator=torch.Generator().manual_seed(3))
        apart = sliced_discrepancy(first, second, directions)
    # Heads descend on -apart, features on 2 * apart.
    direct, *heads = torch.autograd.grad(apart, [plain, *mcd.heads.parameters()])
    torch.testing.assert_close(reversed_, 2 * direct)
    torch.testing.assert_close(own, [-g for g in heads])
    assert losses["discrepancy"].item() == pytest.approx(-apart.item())


def test_heads_learn_the_weighted_source() -> None:
    mcd = method()
    w = torch.tensor([0.2, 2.0, 1.0, 0.0])
    source = make_batch(4, 4, weights=w)
    labels = source.features.detach()[:, :3].argmax(1)
    wanted = sum(
        (w * functional.cross_entropy(head(source.features), labels, reduction="none")).sum()
        / w.sum()
        for head in mcd.heads
    )
    loss = mcd.losses(source, make_batch(4, 5), make_step())["heads"]
    torch.testing.assert_close(loss, wanted)


@pytest.mark.parametrize("distance", ["l1", "sliced"])
def test_two_processes_find_the_loss_of_the_whole_batch(distance: str) -> None:
    assert_global_batch(method(distance=distance))


def test_the_two_heads_start_apart_and_every_parameter_has_a_gradient() -> None:
    mcd: Method = method(lr_scale=0.5)
    (group,) = mcd.param_groups()
    assert group["lr_scale"] == 0.5
    losses = mcd.losses(make_batch(6, 6), make_batch(1, 7), make_step(0.0))
    assert losses["discrepancy"].item() < 0
    gradients = torch.autograd.grad(sum(losses.values()), group["params"])  # type: ignore[arg-type]
    assert all(g.abs().sum() > 0 for g in gradients)
