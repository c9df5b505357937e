"""The trainer's steps, and the loop that a practitioner would write, for measuring them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from daptkit.data import batch_indices
from daptkit.method import DomainBatch, StepContext
from daptkit.nn import domain_bce, gradient_reversal, ramp
from daptkit.train.domains import training_batches
from daptkit.train.job import Job
from daptkit.train.loop import Trainer
from daptkit.train.optim import schedule_factor


class BareLoop:
    """What a practitioner writes: all images on the device, one optimiser, the packages' losses.

    Args:
        job: what it starts from, copied; made before the trainer compiles anything of it.
        total: steps of the run.
    """

    def __init__(self, job: Job, total: int) -> None:
        self.net = copy.deepcopy(job.net)
        self.device, self.precision = job.precision.device, job.precision
        self.backbone = self.net.backbone
        if job.config.compile:
            self.backbone = torch.compile(self.backbone)
        self.methods = copy.deepcopy(job.methods)
        self.loss = method_loss(self.methods, total)
        self.total, self.batch, self.config = total, job.config.batch_size, job.config
        data = job.data
        self.source = data.source.images.batch(data.train_rows).to(self.device)
        self.target = data.target.images.batch(data.target_rows).to(self.device)
        self.labels = torch.from_numpy(data.source.labels[data.train_rows]).to(self.device)
        own = [p for method in self.methods.values() for p in method.parameters()]
        self.optimizer = torch.optim.SGD(
            [*self.net.parameters(), *own],
            lr=self.config.lr,
            momentum=0.9,
            nesterov=True,
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        self.net.train()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self.precision.enabled:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision.dtype)

    def rows(self, domain: int, step: int) -> Tensor:
        count = len((self.source, self.target)[domain])
        rows = batch_indices(count, self.batch, seed=self.config.seed, stream=domain, step=step)
        on_host = torch.from_numpy(rows)
        if self.device.type == "cuda":
            on_host = on_host.pin_memory()
        return on_host.to(self.device, non_blocking=True)

    def step(self, number: int) -> Tensor:
        rows = self.rows(0, number)
        images, labels, n = self.source[rows], self.labels[rows], len(rows)
        if self.methods:
            images = torch.cat([images, self.target[self.rows(1, number)]])
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * schedule_factor("inverse", number / self.total)
        net = self.net
        images = images.float().div_(255).to(memory_format=torch.channels_last)
        with self.autocast():
            features = net.bottleneck(self.backbone((images - net.mean) / net.std))
            logits = net.head(features)
            total = functional.cross_entropy(logits[:n], labels)
            total = total + self.loss(features, logits, n, number)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return total.detach()


Loss = Callable[[Tensor, Tensor, int, int], Tensor | float]


def method_loss(methods: Any, total: int) -> Loss:
    """Return the loss of the method's paper, by the functions of its package."""
    if not methods:
        return lambda features, logits, n, step: 0.0
    method = next(iter(methods.values()))
    name = type(method).__name__
    if name == "CORAL":
        from daptkit_coral.coral import coral_loss, mean_loss

        def coral(f: Tensor, logits: Tensor, n: int, step: int) -> Tensor:
            o, factor = method.options, ramp(step / total) if method.options.ramp else 1.0
            return factor * (
                o.weight * coral_loss(f[:n], f[n:]) + o.mean_weight * mean_loss(f[:n], f[n:])
            )

        return coral
    if name in ("MMD", "JMMD"):
        from daptkit_mmd.jmmd import jmmd_loss
        from daptkit_mmd.mmd import mmd_loss

        def mmd(f: Tensor, logits: Tensor, n: int, step: int) -> Tensor:
            factor = method.options.weight * ramp(step / total)
            if name == "MMD":
                return factor * mmd_loss(f[:n], f[n:])
            return factor * jmmd_loss((f[:n], logits[:n]), (f[n:], logits[n:]))

        return mmd
    return adversarial(method, total)


def adversarial(method: Any, total: int) -> Loss:
    def loss(f: Tensor, logits: Tensor, n: int, step: int) -> Tensor:
        if type(method).__name__ == "DANN":
            inputs, weights = f, f.new_ones(len(f))
        else:  # the map of features and predictions is the package's
            context = StepContext(progress=0.0, step=step, class_weights=f.new_ones(10))
            batches = [
                DomainBatch(
                    logits=logits[part],
                    taps={"features": f[part], "logits": logits[part]},
                    weights=f.new_ones(n),
                    groups=torch.arange(n, device=f.device),
                    index=torch.arange(n, device=f.device),
                )
                for part in (slice(0, n), slice(n, None))
            ]
            return method.losses(*batches, replace(context, progress=step / total))["domain"]
        told = method.discriminator(gradient_reversal(inputs, ramp(step / total)))
        return domain_bce(told[:n], told[n:], weights[:n], weights[n:])

    return loss


def steps_of(trainer: Trainer) -> Iterator[Tensor]:
    """Let the trainer run, and stop after each step with the sum of its losses."""
    job = trainer.job
    trainer.module.train()
    weights = trainer.class_weights.to(trainer.device)
    generator = torch.Generator(trainer.device)
    batches = training_batches(
        job.data,
        start=0,
        stop=trainer.total,
        batch_size=job.config.batch_size,
        seed=job.config.seed,
        device=trainer.device,
        with_target=bool(job.methods),
    )
    seen: list[Tensor] = []
    trainer.module.register_forward_hook(
        lambda module, given, result: seen.append(result.total.detach())
    )
    for source, target in batches:
        trainer._train_step(source, target, weights, None, generator)
        yield seen.pop()
