"""The trainer's step beside a hand-written loop that does the same mathematics.

``pytest tests/benchmarks/test_bench_step.py -m benchmark -s`` prints how many times as long the
trainer takes, by the median and by the minimum. Both sides take turns step by step in one process,
with one thread and one allocator, on the same batches, each first at every other step. The sums of
their losses over the first steps, when the ramps have left 0, must be equal. The map of ``cdan``
is its package's own on both sides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daptkit.host import load_methods, parse_method
from daptkit.train.job import Job
from daptkit.train.loop import Trainer
from fakes import make_job, tiny_config
from step_loops import BareLoop, steps_of

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
