"""Training on a GPU: ResNet-50 at 224 px, 64 + 64 images, beside a hand-written loop.

``pytest tests/benchmarks/test_bench_gpu.py -m benchmark -s`` prints images a second of both in
float32, bfloat16 and compiled, their peak memory, and the share of the time at which the GPU works
while batches come from the cache of decoded images. The loop by hand has every image on the GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.train.loop import Trainer
from device_steps import run_without_synchronisation
from gpu_measures import PRECISIONS, Size, busy_fraction, compare, job_of, table

FULL = Size()

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="measures a CUDA GPU; none is visible"
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sites")


@pytest.mark.parametrize("method", ["none", "dann", "jmmd"])
def test_step_beside_a_loop_by_hand(benchmark: Any, folder: Path, method: str) -> None:
    found = compare(folder, FULL, method, amp=True)
    print(f"\nbf16 {method}: {found.host:.0f} images/s, by hand {found.bare:.0f}")
    benchmark.extra_info.update(vars(found), ratio=round(found.ratio, 3))
    benchmark.pedantic(lambda: None)
    assert found.ratio < 1.1


def test_precisions(folder: Path) -> None:
    lines = list(table(folder, FULL, "dann"))
    print("", *lines, sep="\n")
    assert len(lines) == len(PRECISIONS)


def test_the_gpu_is_kept_busy(folder: Path) -> None:
    busy = busy_fraction(folder, FULL, "dann", amp=True)
    print(f"\nthe GPU works {busy:.0%} of the time")
    assert busy > 0.9


def test_a_hundred_steps_wait_for_nothing(folder: Path) -> None:
    trainer = Trainer(job_of(folder, FULL, "dann+bbse", amp=True))
    losses = run_without_synchronisation(trainer, warm_up=20, steps=100)
    assert all(value == value for value in losses)
