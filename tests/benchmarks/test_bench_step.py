"""The trainer's step beside a hand-written loop that does the same mathematics.

``pytest tests/benchmarks/test_bench_step.py -m benchmark -s`` prints how many times as long the
trainer takes, by the median and by the minimum. Both sides take turns step by step in one process,
with one thread and one allocator, on the same batches, each first at every other step. The sums of
their losses over the first steps, when the ramps have left 0, must be equal. The map of ``cdan``
is its package's own on both sides.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from daptkit.data import batch_indices
from daptkit.host import load_methods, parse_method
from daptkit.train.job import Job
from daptkit.train.loop import Trainer
from daptkit.train.optim import schedule_factor
from fakes import make_job, tiny_config

METHODS = ("none", "dann", "cdan", "coral", "mmd", "jmmd", "dann+bbse")
NETS: dict[str, dict[str, Any]] = {
    "daptkit_lenet": {"edge": 28, "channels": 1, "batch": 64, "steps": 150},
    "resnet18": {"edge": 128, "channels": 3, "batch": 16, "steps": 25},
}
WARM_UP = 5

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_images(path: Path, edge: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (320, edge, edge) if channels == 1 else (320, edge, edge, channels)
    parts: dict[str, np.ndarray] = {}
    for split in ("train", "val"):
        parts[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        parts[f"{split}_labels"] = rng.integers(0, 10, 320)
    np.savez(path, **parts)


def job_of(folder: Path, net: str, method: str) -> Job:
    size = NETS[net]
    for seed, name in enumerate(("source", "target")):
        write_images(folder / f"{name}.npz", size["edge"], size["channels"], seed)
    config = tiny_config(
        folder,
        model=net,
        img_size=size["edge"],
        in_chans=size["channels"],
        bottleneck=256,
        batch_size=size["batch"],
        epochs=10,
        log_interval=50,
    )
    return make_job(config, *load_methods(parse_method(method)))[0]


class BareLoop:
    """What a practitioner writes: tensors in memory, one optimiser, the losses of the packages."""

    def __init__(self, job: Job, total: int) -> None:
        self.net = copy.deepcopy(job.net)
        self.methods = copy.deepcopy(job.methods)
        self.loss = method_loss(self.methods, total)
        self.total, self.batch, self.config = total, job.config.batch_size, job.config
        data = job.data
        self.source = data.source.images.batch(data.train_rows)
        self.target = data.target.images.batch(data.target_rows)
        self.labels = torch.from_numpy(data.source.labels[data.train_rows])
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

    def rows(self, domain: int, step: int) -> Tensor:
        count = len((self.source, self.target)[domain])
        rows = batch_indices(count, self.batch, seed=self.config.seed, stream=domain, step=step)
        return torch.from_numpy(rows)

    def step(self, number: int) -> Tensor:
        rows = self.rows(0, number)
        images, labels, n = self.source[rows], self.labels[rows], len(rows)
        if self.methods:
            images = torch.cat([images, self.target[self.rows(1, number)]])
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * schedule_factor("inverse", number / self.total)
        net = self.net
        images = images.float().div_(255).to(memory_format=torch.channels_last)
        features = net.bottleneck(net.backbone((images - net.mean) / net.std))
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
    from daptkit.nn import ramp

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
    from daptkit.method import DomainBatch, StepContext
    from daptkit.nn import domain_bce, gradient_reversal, ramp

    def loss(f: Tensor, logits: Tensor, n: int, step: int) -> Tensor:
        if type(method).__name__ == "DANN":
            inputs, weights = f, f.new_ones(len(f))
        else:  # the map of features and predictions is the package's
            context = StepContext(progress=0.0, step=step, class_weights=torch.ones(10))
            batches = [
                DomainBatch(
                    logits=logits[part],
                    taps={"features": f[part], "logits": logits[part]},
                    weights=f.new_ones(n),
                    groups=torch.arange(n),
                    index=torch.arange(n),
                )
                for part in (slice(0, n), slice(n, None))
            ]
            return method.losses(*batches, replace(context, progress=step / total))["domain"]
        told = method.discriminator(gradient_reversal(inputs, ramp(step / total)))
        return domain_bce(told[:n], told[n:], weights[:n], weights[n:])

    return loss


@pytest.mark.parametrize("net", list(NETS))
@pytest.mark.parametrize("method", METHODS)
def test_step(
    benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: str, method: str
) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    job = job_of(tmp_path, net, method)
    trainer = Trainer(job)
    bare = BareLoop(job, trainer.total)
    host = steps_of(trainer)
    spent: dict[str, list[float]] = {"host": [], "bare": []}
    for number in range(WARM_UP + NETS[net]["steps"]):
        turns = {"host": lambda: next(host), "bare": lambda number=number: bare.step(number)}
        losses = {}
        for side in sorted(turns, reverse=number % 2 == 0):
            started = time.perf_counter()
            losses[side] = turns[side]()
            if number >= WARM_UP:
                spent[side].append(time.perf_counter() - started)
        if number < WARM_UP:
            assert float(losses["host"]) == pytest.approx(float(losses["bare"]), rel=1e-4)
    for summary in (statistics.median, min):
        ours, theirs = summary(spent["host"]), summary(spent["bare"])
        benchmark.extra_info[summary.__name__] = {
            "milliseconds": round(1e3 * ours, 2),
            "ratio": round(ours / theirs, 3),
        }
    print(f"\n{net} {method}:", dict(benchmark.extra_info))
    benchmark.pedantic(lambda: next(host), rounds=5)


def steps_of(trainer: Trainer) -> Iterator[Tensor]:
    """Let the trainer run, and stop after each step with the sum of its losses."""
    from daptkit.train.domains import training_batches

    job = trainer.job
    trainer.module.train()
    weights, generator = trainer.class_weights, torch.Generator()
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
