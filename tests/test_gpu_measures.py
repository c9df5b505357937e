"""The measures of tests/benchmarks/test_bench_gpu.py, run on the CPU at a tiny size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.train import compiling
from gpu_measures import PRECISIONS, TINY, busy_fraction, compare, covered, table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sites")


class Found:
    """What a comparison found."""

    host, bare, ratio = 50.0, 55.0, 1.1
    host_memory, bare_memory = 3 * 2**29, 2**30


def test_intervals_that_overlap_count_once() -> None:
    assert covered([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 4.0
    assert covered([]) == 0.0


@pytest.mark.parametrize("method", ["none", "dann", "jmmd"])
def test_both_loops_are_measured(folder: Path, method: str) -> None:
    found = compare(folder, TINY, method, amp=True)
    assert found.host > 0 and found.bare > 0
    assert found.ratio == found.bare / found.host


def test_the_busy_fraction_reads_a_warm_cache(folder: Path) -> None:
    assert 0 < busy_fraction(folder, TINY, "dann") <= 1


def test_the_table_has_a_line_for_each_precision(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        "gpu_measures.compare", lambda *given, **values: asked.append(values) or Found
    )
    lines = list(table(folder, TINY, "dann"))
    assert asked == list(PRECISIONS.values())
    assert lines[1] == (
        "test_resnet dann bf16: 50 images/s, by hand 55, time ratio 1.100; peak 1.50 GiB, by hand"
        " 1.00 GiB"
    )


def test_compiled_loops_are_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_BACKEND", "eager")
    compile_ = torch.compile
    monkeypatch.setattr(
        "step_loops.torch.compile", lambda module, **_: compile_(module, backend="eager")
    )
    assert compare(folder, TINY, "none", compile=True).host > 0
    torch.compiler.reset()
