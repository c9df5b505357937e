"""Measures of training on a GPU; every function also runs on a CPU, at a size of a few seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from daptkit.config import AdaptConfig
from daptkit.host import load_methods, parse_method
from daptkit.train.job import Job
from daptkit.train.loop import Trainer
from fakes import make_job, tiny_config
from step_loops import BareLoop, steps_of


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is measured: a network, its images, the batch of each domain, blocks of steps."""

    model: str = "resnet50"
    edge: int = 224
    batch: int = 64
    images: int = 640
    warm_up: int = 20
    steps: int = 50
    blocks: int = 5
    device: str = "cuda"


TINY = Size(
    model="test_resnet", edge=32, batch=4, images=24, warm_up=1, steps=2, blocks=2, device="cpu"
)
"""A size that a CPU does in no time, to know that the code runs."""

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"amp": True},
    "bf16 compiled": {"amp": True, "compile": True},
}


def write_photographs(folder: Path, size: Size) -> None:
    """Write two sites of PNG files in class folders, once."""
    for seed, site in enumerate(("source", "target")):
        if (folder / site).exists():
            continue
        rng = np.random.default_rng(seed)
        for number in range(size.images):
            place = folder / site / f"class_{number % 4}"
            place.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((size.edge, size.edge))
            image.save(place / f"{number}.png", compress_level=1)


def config_of(folder: Path, size: Size, **values: Any) -> AdaptConfig:
    """Return the configuration of a run on those files, whose pixels are cached beside them."""
    write_photographs(folder, size)
    given: dict[str, Any] = {
        "source": (str(folder / "source"),),
        "target": str(folder / "target"),
        "cache": str(folder / "decoded"),
        "model": size.model,
        "img_size": size.edge,
        "in_chans": 3,
        "bottleneck": 256,
        "batch_size": size.batch,
        "epochs": 1000,
        "log_interval": 10**6,
        "device": size.device,
        "aug": "none",
    }
    return tiny_config(folder, **{**given, **values})


def job_of(folder: Path, size: Size, method: str, **values: Any) -> Job:
    """Return the job of such a run; from the second on, no file of the folder is decoded."""
    return make_job(config_of(folder, size, **values), *load_methods(parse_method(method)))[0]


@dataclass(frozen=True)
class Speed:
    """Images a second, both domains counted, median over blocks; and the largest memory, bytes."""

    host: float
    bare: float
    host_memory: int
    bare_memory: int

    @property
    def ratio(self) -> float:
        """How many times as long as the hand-written loop the trainer takes."""
        return self.bare / self.host


def compare(folder: Path, size: Size, method: str, **values: Any) -> Speed:
    """Measure the trainer's step beside a hand-written loop with all images on the device.

    The two take turns, block by block, each waited for at its end only: both may run ahead of the
    device within a block.
    """
    job = job_of(folder, size, method, **values)
    trainer = Trainer(job)
    bare = BareLoop(job, trainer.total)
    host = steps_of(trainer)
    numbers = iter(range(trainer.total))
    turns: dict[str, Callable[[], object]] = {
        "host": lambda: next(host),
        "bare": lambda: bare.step(next(numbers)),
    }
    spent: dict[str, list[float]] = {name: [] for name in turns}
    memory = dict.fromkeys(turns, 0)
    for step in turns.values():
        timed(step, size.warm_up, trainer.device)
    for block in range(size.blocks):
        for name in sorted(turns, reverse=block % 2 == 0):
            reset_peak(trainer.device)
            spent[name].append(timed(turns[name], size.steps, trainer.device))
            memory[name] = max(memory[name], peak(trainer.device))
    images = size.steps * size.batch * (2 if job.methods else 1)
    speed = {name: images / statistics.median(values) for name, values in spent.items()}
    return Speed(speed["host"], speed["bare"], memory["host"], memory["bare"])


def timed(step: Callable[[], object], count: int, device: torch.device) -> float:
    """Return the seconds of some steps, the work that they queued included."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(count):
        step()
    synchronise(device)
    return time.perf_counter() - started


def busy_fraction(folder: Path, size: Size, method: str, **values: Any) -> float:
    """Return the share of the time at which the device computes, batches read from a warm cache.

    Copies to the device do not count: they run beside the computing.
    On a CPU there is nothing to watch: the operations themselves are taken for the device's work.
    """
    job_of(folder, size, "none", **values)  # fills the cache of decoded images
    job = job_of(folder, size, method, **values)
    assert job.data.source.images.decoded == 0, "the cache was cold"
    trainer = Trainer(job)
    host = steps_of(trainer)
    timed(lambda: next(host), size.warm_up, trainer.device)
    cuda = trainer.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as watched:
        seconds = timed(lambda: next(host), size.steps, trainer.device)
    kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    spans = (
        (event.time_range.start, event.time_range.end)
        for event in watched.events()
        if event.device_type == kind and not event.name.startswith("Memcpy HtoD")
    )
    return covered(spans) / (1e6 * seconds)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def table(folder: Path, size: Size, method: str) -> Iterator[str]:
    """Yield one line a precision: images a second of both, their ratio and memory."""
    for name, values in PRECISIONS.items():
        found = compare(folder, size, method, **values)
        yield (
            f"{size.model} {method} {name}: {found.host:.0f} images/s, by hand {found.bare:.0f},"
            f" time ratio {found.ratio:.3f}; peak {found.host_memory / 2**30:.2f} GiB, by hand"
            f" {found.bare_memory / 2**30:.2f} GiB"
        )


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget the largest memory so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int:
    """Return the largest memory in use on a GPU since it was forgotten, bytes; 0 on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
