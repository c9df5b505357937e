"""VAT against the eigenvector it looks for, and the faults of the library's layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from daptkit.method import DomainBatch, StepContext
from daptkit.testing import assert_global_batch, make_batch, make_step, make_task
from daptkit_pytorch_adapt.plugin import VATOptions
from daptkit_pytorch_adapt.vat import VAT, adversarial_direction, divergence_of_rows

WEIGHT = torch.randn(6, 3, generator=torch.Generator().manual_seed(5))


class LinearModel:
    """A model of six inputs that counts its forwards."""

    def __init__(self) -> None:
        self.weight = WEIGHT.clone().requires_grad_()
        self.forwards = 0

    def __call__(self, inputs: Tensor) -> DomainBatch:
        self.forwards += 1
        rows = torch.arange(len(inputs))
        logits = inputs @ self.weight
        return DomainBatch(
            logits=logits,
            taps={"features": inputs, "logits": logits},
            weights=torch.ones(len(inputs)),
            groups=rows,
            index=rows,
        )


class OnFeatures(VAT):
    """The features of the batch are the inputs of a linear model."""

    model = LinearModel()

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(7)
        ctx = replace(ctx, forward=self.model, generator=generator)
        return super().losses(source, replace(target, inputs=target.features), ctx)


def method(**options: float) -> OnFeatures:
    made = OnFeatures(VATOptions(**options), make_task())  # type: ignore[arg-type]
    made.model = LinearModel()
    return made


def test_divergence_is_the_loop() -> None:
    a, b = make_batch(4, 0).logits, make_batch(4, 1).logits
    p, q = torch.softmax(a, 1).tolist(), torch.softmax(b, 1)
    wanted = [
        sum(x * (torch.tensor(x).log() - y.log()).item() for x, y in zip(r, s, strict=True))
        for r, s in zip(p, q, strict=True)
    ]
    found = divergence_of_rows(a, b)
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    assert torch.autograd.grad(found.sum(), a, allow_unused=True) == (None,)


def test_direction_is_the_eigenvector_of_the_curvature() -> None:
    """For logits W'x the curvature of KL is W (diag(p) - pp') W'; power iteration finds its top."""
    x = make_batch(3, 2).features.detach()
    clean = x @ WEIGHT
    start = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    found = adversarial_direction(
        x, clean, lambda v: v @ WEIGHT, start, torch.full((3, 1), 1e-2), iterations=20
    )
    for row, logits in zip(found, clean, strict=True):
        p = torch.softmax(logits, 0)
        curvature = WEIGHT @ (p.diag() - p[:, None] * p) @ WEIGHT.T
        top = torch.linalg.eigh(curvature).eigenvectors[:, -1]
        assert row.square().mean().item() == pytest.approx(1.0, rel=1e-4)
        assert torch.dot(row / row.norm(), top).abs().item() == pytest.approx(1.0, abs=1e-2)


def test_loss_is_that_of_the_moved_images_and_beats_a_random_move() -> None:
    vat = method(epsilon=0.3, iterations=3, ramp=False)
    target = make_batch(8, 3)
    loss = vat.losses(None, target, make_step())["consistency"].item()
    x = target.features.detach()
    size = 0.3 * x.square().mean(1, keepdim=True).sqrt()
    noise = torch.randn(8, 6, generator=torch.Generator().manual_seed(2))
    noise = noise / noise.square().mean(1, keepdim=True).sqrt()
    random = divergence_of_rows(x @ WEIGHT, (x + size * noise) @ WEIGHT).mean().item()
    assert loss > 1.5 * random
    assert vat.model.forwards == 5  # clean, three of the search, moved


def test_gradients_of_the_model_are_left_alone() -> None:
    """The library's layer calls zero_grad: whatever other losses gave is lost."""
    vat = method()
    kept = torch.full_like(vat.model.weight, 3.0)
    vat.model.weight.grad = kept.clone()
    loss = vat.losses(None, make_batch(5, 4), make_step())["consistency"]
    torch.testing.assert_close(vat.model.weight.grad, kept, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(loss, vat.model.weight)
    assert gradient.abs().sum() > 0


def test_two_processes_find_the_loss_of_the_whole_batch() -> None:
    assert_global_batch(method(iterations=2))


@pytest.mark.parametrize("n", [1, 4])
def test_constant_images_and_predictions_are_finite(n: int) -> None:
    vat = method()
    target = make_batch(n, 5)
    target.features.data.zero_()
    loss = vat.losses(None, target, make_step())["consistency"]
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.autograd.grad(loss, vat.model.weight)[0].isfinite().all()
