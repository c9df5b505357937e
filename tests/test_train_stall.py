"""Where a read stalls the device: no step reads, bad steps change nothing and are found later."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.config import AdaptConfig
from daptkit.data.augment import PRESETS, Augment
from daptkit.errors import NonFiniteLossError, Terminated
from daptkit.host import load_methods, parse_method
from daptkit.method import Method
from daptkit.testing.reads import Reads
from daptkit.train.checkpoint import load_checkpoint
from daptkit.train.checks import check_losses, check_weights
from daptkit.train.device import Precision, read_numbers
from daptkit.train.faults import step_unless
from daptkit.train.job import Job
from daptkit.train.loop import Trainer
from daptkit.train.update import Updater
from daptkit.train.window import Window
from fakes import in_process, make_job, tiny_config

OPTIMISERS = AdaptConfig.__dataclass_fields__["opt"].metadata["choices"]


class Scaled(Precision):
    """The loss scaler of float16, which a CPU never gets in a run, around float32."""

    def new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", growth_interval=1000)


SCALED = Scaled(torch.device("cpu"), enabled=False, dtype="bfloat16")


@pytest.fixture
def stalling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the CPU as a GPU is treated."""
    monkeypatch.setattr(Precision, "reads_stall", True)


def counted(monkeypatch: pytest.MonkeyPatch, job: Job, steps: int) -> list[list[str]]:
    """Train and return the reads of each of the first steps."""
    trainer, found = Trainer(job), []
    step = trainer._train_step

    def watched(*given: Any) -> None:
        with Reads() as reads:
            step(*given)
        found.append(reads.found)
        if len(found) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(trainer, "_train_step", watched)
    with pytest.raises(Terminated):
        trainer.run()
    return found


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "none"])
def test_augmentation_reads_nothing(preset: str) -> None:
    images, generator = torch.rand(4, 1, 16, 16), torch.Generator().manual_seed(0)
    with Reads() as reads:
        Augment(preset)(images, generator)
    assert reads.found == []


@pytest.mark.usefixtures("stalling")
@pytest.mark.parametrize(
    ("method", "values", "precision"),
    [
        ("none", {}, None),
        ("none", {"opt": "adamw", "clip_grad": 1.0, "dropout": 0.2}, None),
        ("dann+bbse", {"amp": True}, None),
        ("cdan+coral", {"model": "test_resnet", "bn": "split"}, None),
        ("mmd", {"opt": "adamw"}, SCALED),
        ("jmmd", {"clip_grad": 1.0}, SCALED),
    ],
)
def test_a_step_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, values: Any, precision: Any
) -> None:
    job, _ = make_job(tiny_config(tmp_path, **values), *load_methods(parse_method(method)))
    if precision is not None:
        job = replace(job, precision=precision)
    found = counted(monkeypatch, job, 12)
    assert [bool(reads) for reads in found] == [step == 9 for step in range(12)], found
    # What was not finite, in one; the scale, where there is one; the means of the losses, in one.
    scale = ["aten::_local_scalar_dense"] if precision else []
    assert found[9] == ["tolist", *scale, "tolist"]


def test_on_a_cpu_every_step_reads_its_losses_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = make_job(tiny_config(tmp_path), *load_methods(["dann", "coral"]))
    assert counted(monkeypatch, job, 3) == [["tolist"]] * 3


def test_many_numbers_are_one_read() -> None:
    numbers = {name: torch.tensor(float(place)) for place, name in enumerate("abc")}
    window = Window()
    window.add(numbers, {})
    window.add({"a": torch.tensor(3.0)}, {})
    for read in (
        lambda: check_losses(numbers, 0),
        lambda: check_weights(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), 0),
        lambda: window.take(),
        lambda: read_numbers(list(numbers.values())),
    ):
        with Reads() as reads:
            result = read()
        assert reads.found == ["tolist"]
    assert result == [0.0, 1.0, 2.0]
    window.add(numbers, {})
    window.add({"a": torch.tensor(3.0)}, {})
    assert window.take() == {"a": 1.5, "b": 1.0, "c": 2.0}


class Spoils(Method):
    """A method whose loss is bad at one step, in the way that ``how`` names."""

    at, how, kill_at = 64, "", -1

    def on_epoch_end(self, ctx: Any) -> None:
        # Nothing is measured by statistics that are lost.
        assert all(value.isfinite().all() for value in ctx.predict("target").taps.values())

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        if ctx.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        pull = (target.features.mean() - source.features.mean()).square()
        bad = ctx.step == self.at
        if self.how == "gradient":
            # The root's slope at 0 is infinite: the loss is finite, its gradient is not.
            size = (target.features * (not bad)).square().sum().sqrt()
            return {"pull": pull, "root": size * 1e-3}
        if bad and self.how == "loss":
            pull = pull * float("nan")
        if bad and self.how == "constant":
            pull = pull + torch.tensor(float("inf"))
        if bad and self.how == "images":
            pull = pull + ctx.forward(target.inputs * float("nan")).features.mean()
        return {"pull": pull}


def spoilt(how: str, **more: Any) -> Any:
    return in_process(type("Spoilt", (Spoils,), {"how": how, **more}))


def copied(trainer: Trainer) -> list[torch.Tensor]:
    """Return all that a step of the optimiser changes."""
    states = trainer.updater.optimizer.state_dict()["state"]
    held = [value for _, state in sorted(states.items()) for _, value in sorted(state.items())]
    return [t.detach().clone() for t in (*trainer.module.parameters(), *held)]


SAID = {"gradient": "the gradient of a loss is", "loss": "loss 'fake/pull' is"}


@pytest.mark.usefixtures("stalling")
@pytest.mark.parametrize("opt", OPTIMISERS)
@pytest.mark.parametrize(
    ("how", "scaled"),
    [("loss", False), ("constant", False), ("gradient", False), ("loss", True), ("constant", True)],
)
def test_a_bad_step_changes_nothing_and_is_named_at_the_next_log_step(
    tmp_path: Path, how: str, scaled: bool, opt: str
) -> None:
    job, _ = make_job(tiny_config(tmp_path, opt=opt, epochs=2, clip_grad=1.0), spoilt(how))
    trainer = Trainer(replace(job, precision=SCALED) if scaled else job)
    states: dict[int, list[torch.Tensor]] = {}
    trainer.updater.optimizer.register_step_post_hook(
        lambda *_: states.update({trainer.step: copied(trainer)})
    )
    said = rf"{SAID.get(how, SAID['loss'])} not finite at step 64; the last good state is kept"
    with pytest.raises(NonFiniteLossError, match=said):
        trainer.run()
    assert trainer.step == 69
    assert len(states[63]) == len(states[64])
    for before, after in zip(states[63], states[64], strict=True):
        assert torch.equal(before, after)
    assert not all(map(torch.equal, states[64], states[65]))
    assert all(value.isfinite().all() for value in states[69])


@pytest.mark.usefixtures("stalling")
@pytest.mark.parametrize(
    ("at", "kill_at", "interval"),
    [pytest.param(64, 66, 10, id="signal"), pytest.param(98, -1, 30, id="end of an epoch")],
)
def test_no_checkpoint_holds_the_batchnorm_of_a_bad_step(
    tmp_path: Path, at: int, kill_at: int, interval: int
) -> None:
    def train(folder: Path, method: Any) -> Trainer:
        config = tiny_config(folder, model="test_resnet", epochs=2, log_interval=interval)
        trainer = Trainer(make_job(config, method)[0])
        trainer.run()
        return trainer

    with pytest.raises(NonFiniteLossError, match=rf"'fake/pull' is not finite at step {at}"):
        train(tmp_path / "cut", spoilt("images", at=at, kill_at=kill_at))
    state, _ = load_checkpoint(tmp_path / "cut" / "run" / "checkpoints")
    assert state is not None
    assert state["step"] == 50
    assert all(value.isfinite().all() for value in state["module"].values())
    again, whole = (train(tmp_path / name, spoilt("")) for name in ("cut", "whole"))
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name


@pytest.mark.parametrize("opt", OPTIMISERS)
def test_every_optimiser_can_leave_out_its_first_step(tmp_path: Path, opt: str) -> None:
    def weights(slopes: list[float]) -> torch.Tensor:
        job, _ = make_job(tiny_config(tmp_path, opt=opt))
        optimizer = Updater(job).optimizer
        for slope in slopes:
            optimizer.zero_grad()
            (job.net.head.weight * slope).sum().backward()
            step_unless(optimizer, torch.tensor(slope != slope))
        return job.net.head.weight.detach()

    found = weights([float("nan"), 1.0, 1.0])
    assert torch.equal(found, weights([1.0, 1.0]))
    assert not torch.equal(found, weights([1.0]))


class _Half(torch.autograd.Function):
    """What float16 does to a gradient: above 65,504 it overflows."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> torch.Tensor:
        return grads[0].half().float()


class Overflows(Method):
    """A loss whose gradient float16 cannot hold until its scale, 65,536 at first, is 64."""

    slope, kill_at = 1000.0, -1

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        if ctx.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"pull": _Half.apply(target.features.mean() * (0.01 / self.slope)) * self.slope}


def scaled(folder: Path, **more: Any) -> Trainer:
    method = in_process(type("Overflowing", (Overflows,), more))
    job, _ = make_job(tiny_config(folder, epochs=2), method)
    return Trainer(replace(job, precision=SCALED))


@pytest.mark.parametrize("stall", [False, True])
def test_float16_gradients_that_overflow_at_first_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stall: bool
) -> None:
    monkeypatch.setattr(Precision, "reads_stall", stall)
    whole = scaled(tmp_path / "whole")
    states: dict[int, list[torch.Tensor]] = {-1: copied(whole)}
    whole.updater.optimizer.register_step_post_hook(
        lambda *_: states.update({whole.step: copied(whole)})
    )
    whole.run()
    same = [all(map(torch.equal, states[n - 1], states[n])) for n in range(100)]
    assert same == [n < 10 for n in range(100)]
    with pytest.raises(Terminated):
        scaled(tmp_path / "cut", kill_at=4).run()
    again = scaled(tmp_path / "cut")
    again.run()
    assert again.updater.state()["scaler"]["scale"] == 64.0
    assert all(map(torch.equal, copied(again), copied(whole)))


@pytest.mark.parametrize(("stall", "last"), [(False, 26), (True, 29)])
def test_float16_gradients_that_always_overflow_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stall: bool, last: int
) -> None:
    monkeypatch.setattr(Precision, "reads_stall", stall)
    trainer = scaled(tmp_path, slope=1e12)
    before = copied(trainer)
    said = f"float16 gradients overflow at every step up to {last}, whatever their scale"
    with pytest.raises(NonFiniteLossError, match=said):
        trainer.run()
    assert all(map(torch.equal, before, copied(trainer)))
    assert not list(tmp_path.rglob("*.ckpt"))
