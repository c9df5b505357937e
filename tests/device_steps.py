"""Checks of a step on a device: run on the CPU by the normal tests, and on a GPU by tests/gpu."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daptkit.host import load_methods, parse_method
from daptkit.method import DomainBatch
from daptkit.testing import make_batch, make_step, make_task
from daptkit.train.domains import training_batches
from daptkit.train.loop import Trainer
from fakes import make_job, tiny_config, write_weights
from step_loops import steps_of

METHODS = (
    *("none", "dann", "cdan", "coral", "mmd", "jmmd"),
    *(f"{name}+bbse" for name in ("dann", "cdan", "coral", "mmd", "jmmd")),
)
"""Every shipped method, and every alignment under class weights."""

ALIGNMENTS = ("dann", "cdan", "coral", "mmd", "jmmd")
"""Methods with a loss of their own."""


def trainer_of(folder: Path, method: str, device: str, **values: Any) -> Trainer:
    """Return the trainer of a tiny run."""
    config = tiny_config(folder, **{"batch_size": 32, "device": device, **values})
    return Trainer(make_job(config, *load_methods(parse_method(method)))[0])


def losses_and_gradient(
    folder: Path, method: str, device: str, **values: Any
) -> tuple[dict[str, float], Tensor]:
    """Return each loss of the first batches in the middle of a run, and the network's gradient."""
    trainer = trainer_of(folder, method, device, **values)
    job = trainer.job
    ((source, target),) = training_batches(
        job.data,
        start=0,
        stop=1,
        batch_size=job.config.batch_size,
        seed=0,
        device=trainer.device,
        with_target=bool(job.methods),
    )
    weights = [2.0, 0.5, 0.7] if "class_weights" in job.owners else [1.0, 1.0, 1.0]
    trainer.module.train()
    with job.precision.autocast():
        result = trainer.module(
            source,
            target,
            progress=0.5,
            step=0,
            class_weights=torch.tensor(weights, device=trainer.device),
            target_prior=None,
            from_trunk=False,
            generator=torch.Generator(trainer.device),
        )
    result.total.backward()
    gradients = [p.grad.flatten() for p in job.net.parameters() if p.grad is not None]
    losses = {name: float(value.detach()) for name, value in result.losses.items()}
    return losses, torch.cat(gradients).double().cpu()


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the distance of two tensors over the size of the second."""
    return float((found - expected).norm() / expected.norm())


@contextlib.contextmanager
def without_synchronisation(device: torch.device) -> Iterator[None]:
    """Let whatever waits for a GPU raise in the block; on a CPU nothing waits."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_without_synchronisation(trainer: Trainer, warm_up: int, steps: int) -> list[float]:
    """Train, the steps after a warm-up without any wait for the device; return all losses.

    No log step may lie among them: that one reads the device.
    """
    assert trainer.job.config.log_interval > warm_up + steps
    host = steps_of(trainer)
    losses = [next(host) for _ in range(warm_up)]
    with without_synchronisation(trainer.device):
        losses += [next(host) for _ in range(steps)]
    return [float(value) for value in losses]


def assert_bfloat16_is_close(folder: Path, method: str, device: str) -> None:
    """Compare a step's losses and gradient under bfloat16 autocast with those of float32.

    What is left is the rounding of the network's own activations, 2^-9 each: 1.3% of a loss and a
    fifth of a gradient at most where this was measured.
    """
    values = write_weights(folder)
    full, gradient = losses_and_gradient(folder, method, device, **values)
    half, rounded = losses_and_gradient(folder, method, device, **values, amp=True)
    assert half.keys() == full.keys()
    for name, value in full.items():
        assert half[name] == pytest.approx(value, rel=0.03), name
    assert 0 < relative(rounded, gradient) < 0.3


def loss_of_features(
    method: str, device: str, *, half: bool, offset: float
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return a method's losses of given features, and what they send back to features and logits.

    Args:
        method: its name.
        device: where.
        half: whether features and logits are bfloat16, under autocast; else they are the same
            numbers in float32.
        offset: added to every feature.
    """
    torch.manual_seed(0)
    task = make_task(5, 64)
    (loaded,) = load_methods(parse_method(method))
    made = loaded.create(loaded.spec.options(), task).to(device)
    weights = torch.linspace(0.2, 3.0, 48)
    batches, leaves = [], []
    for seed, given in enumerate((weights, None)):
        # Rounded in either case: both types hold the same numbers.
        plain = make_batch(48, seed, shift=0.5 * seed + offset, weights=given, task=task)
        tensors = [
            x.detach().bfloat16().to(device, torch.bfloat16 if half else torch.float32)
            for x in (plain.features, plain.logits)
        ]
        features, logits = (x.requires_grad_() for x in tensors)
        leaves += [features, logits]
        batches.append(
            DomainBatch(
                logits=logits,
                taps={"features": features, "logits": logits},
                weights=plain.weights.to(device),
                groups=plain.groups.to(device),
                index=plain.index.to(device),
            )
        )
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=half):
        losses = made.losses(*batches, make_step(progress=0.5))
    torch.autograd.backward(list(losses.values()))
    sent = [x.grad.double().cpu() for x in leaves if x.grad is not None]
    return losses, sent


def assert_loss_is_float32_inside(method: str, device: str, offset: float) -> None:
    """Check that autocast costs a loss of given features no digit, also at a large mean.

    The discriminator's layers may be bfloat16, so of DANN and CDAN only the loss around them is.
    """
    full, sent = loss_of_features(method, device, half=False, offset=offset)
    half, rounded = loss_of_features(method, device, half=True, offset=offset)
    adversarial = method in ("dann", "cdan")
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        rel = 5e-3 if adversarial else 1e-6
        assert float(half[name].detach()) == pytest.approx(float(value.detach()), rel=rel), name
    assert len(rounded) == len(sent)
    for found, expected in zip(rounded, sent, strict=True):
        assert relative(found, expected) < (0.15 if adversarial else 4e-3)
