"""Checks of whole runs on a device: run on the CPU by the normal tests, on a GPU by tests/gpu."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daptkit.errors import Terminated
from daptkit.method import Method
from daptkit.recipes import adapt, predict
from daptkit.train.domains import DomainInputs, training_batches
from daptkit.train.job import Job
from daptkit.train.loop import Trainer
from device_steps import trainer_of
from fakes import in_process, make_job, method_of, tiny_config
from step_loops import steps_of


def assert_run_delivers(folder: Path, device: str, method: str, **values: Any) -> None:
    """Run the whole job, and predict again with the delivered model on the CPU."""
    config = tiny_config(folder, method=method, device=device, **values)
    adapt(config)
    run = Path(config.out)
    assert json.loads((run / "run.json").read_text())["device"] == torch.device(device).type
    predict(config.out, config.target, out=str(folder / "again.csv"))
    rows = [(run / "predictions.csv").read_text(), (folder / "again.csv").read_text()]
    delivered, again = ([line.split(",") for line in text.splitlines()] for text in rows)
    assert len(delivered) == len(again) > 100
    for one, other in zip(delivered[1:], again[1:], strict=True):
        numbers = [[float(cell) for cell in row[2:5]] for row in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)


def stopping(kill_at: int | None) -> type[Method]:
    """A method that draws on the device, and may end its own process."""

    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        if ctx.step == kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        device = target.features.device
        shake = torch.rand((), generator=ctx.generator, device=device) + torch.rand(
            (), device=device
        )
        ctx.log("shake", shake)
        return {"pull": (target.features.mean() - source.features.mean()).square() * shake}

    return method_of(losses)


def assert_resumes(folder: Path, device: str, *, rel: float) -> None:
    """Stop a run within an epoch and continue it; compare metrics and weights with a whole one.

    Args:
        folder: for the files.
        device: where.
        rel: how far the figures may differ; 0 for not at all.
    """

    def job_of(out: str, kill_at: int | None = None) -> Job:
        values = {"epochs": 2, "dropout": 0.2, "aug": "digits", "device": device}
        config = tiny_config(folder, out=str(folder / out), **values)
        return make_job(config, in_process(stopping(kill_at)))[0]

    whole = job_of("whole")
    Trainer(whole).run()
    with pytest.raises(Terminated):
        Trainer(job_of("cut", 64)).run()
    cut = job_of("cut")
    trainer = Trainer(cut)
    assert trainer.step == 65
    trainer.run()
    found, expected = figures_of(cut), figures_of(whole)
    assert [sorted(line) for line in found] == [sorted(line) for line in expected]
    for one, other in zip(found, expected, strict=True):
        # What was drawn is a function of seed and step alone, on any device.
        assert one.get("fake/shake") == other.get("fake/shake")
        assert one == pytest.approx(other, rel=rel, abs=rel)
    for name, value in whole.net.state_dict().items():
        torch.testing.assert_close(cut.net.state_dict()[name], value, rtol=rel, atol=rel)


def figures_of(job: Job) -> list[dict[str, float]]:
    """Return the values of each line of a run's metrics."""
    assert job.folder is not None
    lines = job.folder.metrics.read_text().splitlines()
    return [json.loads(line)["values"] for line in lines]


def assert_batches_arrive(folder: Path, device: str, steps: int = 40) -> None:
    """Keep the device busy while batches are copied and their memory used again; none may change.

    Images are read by the device only after the next batches were sent.
    """
    data = trainer_of(folder, "dann", "cpu").job.data

    def batches(place: torch.device) -> Any:
        options: dict[str, Any] = {"batch_size": 64, "seed": 3, "with_target": True}
        return training_batches(data, start=0, stop=steps, device=place, **options)

    place = torch.device(device)
    sums: list[Tensor] = []
    for pair in batches(place):
        if place.type == "cuda":
            torch.cuda._sleep(20_000_000)
        sums += [checksum(one) for one in pair]
        del pair
    expected = [checksum(one) for pair in batches(torch.device("cpu")) for one in pair]
    found = torch.stack(sums).cpu()
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=0)


def checksum(batch: DomainInputs) -> Tensor:
    """Return a number that depends on every element of a batch and on its place."""
    flat = batch.inputs.flatten().double()
    places = torch.arange(1, len(flat) + 1, device=flat.device, dtype=torch.float64)
    labels = batch.rows if batch.labels is None else batch.labels
    return flat @ places + (batch.rows + 3 * batch.groups + 5 * labels).sum()


def assert_memory_does_not_grow(folder: Path, device: str, warm_up: int, steps: int) -> None:
    """Train on, and compare the memory in use with that after a few steps."""
    trainer = trainer_of(folder, "dann", device, batch_size=8, epochs=3, log_interval=10**6)
    host = steps_of(trainer)
    in_use = []
    for count in (warm_up, steps):
        for _ in range(count):
            assert math.isfinite(float(next(host)))
        cuda = trainer.device.type == "cuda"
        in_use.append(torch.cuda.memory_allocated(trainer.device) if cuda else 0)
    assert in_use[1] <= in_use[0] + 2**16
