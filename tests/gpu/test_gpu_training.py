"""Training on a GPU: each method's step, batches, whole runs, resume, waits and memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from device_runs import (
    assert_batches_arrive,
    assert_memory_does_not_grow,
    assert_resumes,
    assert_run_delivers,
)
from device_steps import (
    ALIGNMENTS,
    METHODS,
    assert_bfloat16_is_close,
    assert_loss_is_float32_inside,
    losses_and_gradient,
    relative,
    run_without_synchronisation,
    trainer_of,
)
from fakes import write_weights


@pytest.fixture(autouse=True)
def own_cache_and_whole_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions of float32 would else be rounded to ten bits, and not be those of the CPU."""
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_that_of_the_cpu(tmp_path: Path, method: str) -> None:
    values = write_weights(tmp_path)
    expected, gradient = losses_and_gradient(tmp_path, method, "cpu", **values)
    found, ours = losses_and_gradient(tmp_path, method, "cuda", **values)
    assert found == pytest.approx(expected, rel=1e-3)
    assert relative(ours, gradient) < 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_bfloat16_is_close_to_one_in_float32(tmp_path: Path, method: str) -> None:
    assert_bfloat16_is_close(tmp_path, method, "cuda")


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("method", ALIGNMENTS)
def test_autocast_costs_a_loss_no_digit(method: str, offset: float) -> None:
    assert_loss_is_float32_inside(method, "cuda", offset)


@pytest.mark.parametrize("method", METHODS)
def test_a_hundred_steps_wait_for_nothing(tmp_path: Path, method: str) -> None:
    values = {**write_weights(tmp_path), "amp": True, "aug": "digits", "epochs": 9}
    trainer = trainer_of(tmp_path, method, "cuda", log_interval=1000, **values)
    losses = run_without_synchronisation(trainer, warm_up=10, steps=100)
    assert all(math.isfinite(value) for value in losses)


def test_batches_arrive_as_they_were_sent(tmp_path: Path) -> None:
    assert_batches_arrive(tmp_path, "cuda")


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("dann+bbse", {}),
        ("jmmd", {"amp": True}),
        ("coral", {"amp": True, "amp_dtype": "float16"}),
        ("mmd", {"finetune": "frozen"}),
        ("none", {"bn": "split"}),
        ("dann", {"compile": True}),
    ],
)
def test_a_run_delivers(tmp_path: Path, method: str, values: dict[str, Any]) -> None:
    assert_run_delivers(tmp_path, "cuda", method, **write_weights(tmp_path), **values)


def test_a_run_resumes(tmp_path: Path) -> None:
    assert_resumes(tmp_path, "cuda", rel=1e-2)


def test_memory_does_not_grow(tmp_path: Path) -> None:
    assert_memory_does_not_grow(tmp_path, "cuda", warm_up=20, steps=100)
