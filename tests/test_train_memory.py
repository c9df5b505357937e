"""Memory that runs out in a step: what fits is found, and the run is the one that is told it."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.errors import DaptkitError, Terminated, UsageError
from daptkit.method import Method
from daptkit.recipes import adapt
from daptkit.train.adaptation import run_adaptation
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter
from daptkit.train.step import Step
from daptkit.train.world import World
from fakes import in_process, make_job, tiny_config, write_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


class Large(Method):
    """Has memory for so many images a time, from a step on; may end the run."""

    most, since, second, kill_at = 8, 0, 8, -1
    gradients_there = False

    def __init__(self, options: Any, task: Any) -> None:
        super().__init__(options, task)
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros(5))

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        # Buffers change before memory runs out.
        self.seen = torch.cat([self.seen, target.features.detach().mean()[None]])[-5:]
        if ctx.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        graded = source.logits.requires_grad and self.gradients_there
        if ctx.step >= self.since and len(target) > (self.second if graded else self.most):
            raise torch.OutOfMemoryError("out of memory")
        shake = torch.rand((), generator=ctx.generator) + torch.rand(())
        gap = target.features.mean() - source.features.mean() + self.seen.mean()
        return {"pull": gap.square() * shake}


class Trained:
    """A finished run of one method on a network with BatchNorm."""

    def __init__(self, folder: Path, out: str, config: dict[str, Any], **limits: Any) -> None:
        options = {**write_weights(folder), "dropout": 0.2, "aug": "digits", **config}
        job, _ = make_job(
            tiny_config(folder, **options),
            in_process(type("Method", (Large,), limits)),
            out=folder / out,
        )
        self.folder = folder / out
        self.trainer = Trainer(job)
        self.fit = self.trainer.run()

    @property
    def lines(self) -> list[dict[str, Any]]:
        found = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in found]

    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] != "parts"]

    def equals(self, other: Trained) -> bool:
        mine, its = (run.trainer.module.state_dict() for run in (self, other))
        return mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in mine)


@pytest.mark.parametrize(("most", "parts"), [(7, 2), (4, 2), (3, 4)])
def test_a_run_that_finds_its_parts_is_the_run_that_is_told_them(
    tmp_path: Path, most: int, parts: int
) -> None:
    found = Trained(tmp_path, "found", {"auto_batch": True}, most=most)
    told = Trained(tmp_path, "told", {"grad_accum_steps": parts})
    assert found.fit.parts == told.fit.parts == parts
    assert found.steps() == told.lines
    assert found.lines[0] == {"kind": "parts", "step": 0, "parts": parts}
    assert found.equals(told)
    (note,) = found.fit.notes
    assert note == (
        "out of memory at step 0: from here on a batch of 8 is passed in"
        f" {parts} parts of {8 // parts} images, as by --grad-accum-steps {parts}"
    )
    assert not told.fit.notes


def test_where_memory_suffices_nothing_changes(tmp_path: Path) -> None:
    plain, automatic = (Trained(tmp_path, str(on), {"auto_batch": on}) for on in (False, True))
    assert automatic.equals(plain)
    assert automatic.lines == plain.lines
    assert automatic.fit.parts == 1


def test_parts_found_in_the_middle_are_those_of_a_continued_run(tmp_path: Path) -> None:
    limits = {"most": 4, "since": 13}
    whole = Trained(tmp_path, "whole", {"auto_batch": True}, **limits)
    with pytest.raises(Terminated):
        Trained(tmp_path, "cut", {"auto_batch": True}, **limits, kill_at=22)
    again = Trained(tmp_path, "cut", {"auto_batch": True}, **limits)
    assert [line for line in whole.lines if line["kind"] == "parts"] == [
        {"kind": "parts", "step": 13, "parts": 2}
    ]
    # Were the parts not kept, they would be found, and written, once more.
    assert again.lines == whole.lines
    assert again.equals(whole)
    assert again.fit.notes == whole.fit.notes


def test_what_is_told_to_fit_holds_beside_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Step.forward

    def watched(self: Step, *args: Any, **kwargs: Any) -> Any:
        Large.gradients_there = any(p.grad is not None for p in self.parameters())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Step, "forward", watched)
    try:
        found = Trained(tmp_path, "found", {"auto_batch": True}, most=4, second=2)
    finally:
        Large.gradients_there = False
    # At once: the first part of two alone would have fitted.
    assert [line["parts"] for line in found.lines if line["kind"] == "parts"] == [4]


def test_memory_that_really_runs_out(tmp_path: Path) -> None:
    class Greedy(Method):
        def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
            torch.empty(len(target) << 28, dtype=torch.uint8)
            return {}

    job, _ = make_job(tiny_config(tmp_path, auto_batch=True), in_process(Greedy))
    trainer = Trainer(job)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + (3 << 29), before[1]))
    try:
        fit = trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    # 8 images take 2 GiB, of 1.5; 4 take 1.
    assert fit.parts == 2


def test_what_fits_is_told(tmp_path: Path) -> None:
    with pytest.raises(DaptkitError) as caught:
        Trained(tmp_path, "run", {}, most=3, since=7)
    assert str(caught.value) == (
        "out of memory at step 7: 8 images of each domain at a time do not fit, 2 do. Use"
        " --auto-batch or --grad-accum-steps 4, which pass a batch in parts, or --batch-size 2."
    )
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("automatic", [True, False])
def test_where_nothing_fits_the_run_ends(tmp_path: Path, automatic: bool) -> None:
    with pytest.raises(DaptkitError, match=r"no smaller number of images .* smaller --img-size"):
        Trained(tmp_path, "run", {"auto_batch": automatic}, most=0)


def test_parts_too_small_for_batchnorm_are_no_way_out(tmp_path: Path) -> None:
    # The last stage has one place an image, so one image a part leaves BatchNorm one value.
    with pytest.raises(DaptkitError, match="no smaller number of images"):
        Trained(tmp_path, "run", {"auto_batch": True, "bn": "split"}, most=1)


def test_a_run_that_ended_goes_on_with_auto_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Step.forward

    def short(self: Step, source: Any, target: Any, **context: Any) -> Any:
        if context["step"] >= 60 and len(source.inputs) > 4:
            raise MemoryError
        return forward(self, source, target, **context)

    plain = adapt(tiny_config(tmp_path, epochs=2, out=str(tmp_path / "plain")))
    monkeypatch.setattr(Step, "forward", short)
    # Without the twin that the plain run kept.
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "another"))
    with pytest.raises(DaptkitError, match="Use --auto-batch or --grad-accum-steps 2"):
        adapt(tiny_config(tmp_path, epochs=2))
    result = adapt(tiny_config(tmp_path, epochs=2, resume=True, auto_batch=True))
    assert json.loads((result.out / "run.json").read_text())["grad_accum_steps"] == {"twin": 2}
    assert "in 2 parts of 4 images" in result.summary
    assert plain.data["grad_accum_steps"] == {"twin": 1}
    # A model that the memory of this machine has shaped is not given to runs that do not say so.
    monkeypatch.undo()
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "another"))
    again = adapt(tiny_config(tmp_path, epochs=2, out=str(tmp_path / "again"), method="coral"))
    twin, own = (run / "metrics.jsonl" for run in (again.out / "twin", plain.out))
    assert twin.read_bytes() == own.read_bytes()


def test_several_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--auto-batch is for one process; give several --grad"):
        run_adaptation(
            tiny_config(tmp_path, auto_batch=True), SilentReporter(), world=Two(rank=0, size=2)
        )
    assert not (tmp_path / "run").exists()


class Two(World):
    """Two processes, of which the other has nothing to tell."""

    def all_of(self, value: Any) -> list[Any]:
        return [value, None]
