"""What tests/gpu runs on a GPU, on the CPU: the first GPU shall find no slip in the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_runs import (
    assert_batches_arrive,
    assert_memory_does_not_grow,
    assert_resumes,
    assert_run_delivers,
)
from device_steps import run_without_synchronisation, trainer_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


def test_a_run_delivers(tmp_path: Path) -> None:
    assert_run_delivers(tmp_path, "cpu", "dann+bbse")


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    assert_resumes(tmp_path, "cpu", rel=0.0)


def test_steps_in_a_row(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "dann+bbse", "cpu", batch_size=8, amp=True, log_interval=100)
    losses = run_without_synchronisation(trainer, warm_up=2, steps=5)
    assert len(losses) == 7 and trainer.step == 7


def test_batches_and_memory(tmp_path: Path) -> None:
    assert_batches_arrive(tmp_path, "cpu", steps=4)
    assert_memory_does_not_grow(tmp_path, "cpu", warm_up=2, steps=3)
