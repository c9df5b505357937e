"""On a GPU: no step waits for the device, and a bad step is found without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.errors import NonFiniteLossError
from daptkit.host import load_methods, parse_method
from daptkit.method import Method
from daptkit.run import RunFolder
from daptkit.train.device import Precision
from daptkit.train.job import Job
from daptkit.train.loop import Trainer
from fakes import in_process, make_job, tiny_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def strict() -> Iterator[None]:
    """Leave the debug mode of synchronisation as it was, whatever a test does."""
    before = torch.cuda.get_sync_debug_mode()
    yield
    torch.cuda.set_sync_debug_mode(before)


def job_on_gpu(folder: Path, *methods: Any, **values: Any) -> Job:
    config = tiny_config(folder, epochs=1, log_interval=25, **values)
    _, maker = make_job(replace(config, amp=False), *methods)
    device = torch.device("cuda")
    precision = Precision(device, enabled=config.amp, dtype=config.amp_dtype)
    maker = replace(maker, precision=precision, config=replace(maker.config, amp=config.amp))
    return maker.make(maker.prepared.data, RunFolder(folder / "gpu"))


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("none", {"aug": "digits", "clip_grad": 1.0}),
        ("dann+bbse", {"aug": "photo", "amp": True}),
        ("cdan+coral", {"model": "test_resnet", "bn": "split", "opt": "adamw"}),
        ("mmd", {"opt": "adamw"}),
        ("jmmd", {"dropout": 0.2}),
    ],
)
def test_no_step_waits_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, values: dict[str, Any]
) -> None:
    trainer = Trainer(job_on_gpu(tmp_path, *load_methods(parse_method(method)), **values))
    step, watched = trainer._train_step, 0

    def strictly(*given: Any) -> None:
        nonlocal watched
        # The first steps set up libraries and buffers; log steps read.
        quiet = trainer.step >= 2 and (trainer.step + 1) % 25 != 0
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")
        try:
            step(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        watched += quiet

    monkeypatch.setattr(trainer, "_train_step", strictly)
    trainer.run()
    assert watched == 46


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
@pytest.mark.parametrize("amp_dtype", [None, "bfloat16", "float16"])
def test_a_bad_step_changes_nothing(tmp_path: Path, opt: str, amp_dtype: str | None) -> None:
    class Spoils(Method):
        def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
            factor = float("nan") if ctx.step == 10 else 1.0
            return {"pull": target.features.mean() * factor}

    amp = {} if amp_dtype is None else {"amp": True, "amp_dtype": amp_dtype}
    trainer = Trainer(job_on_gpu(tmp_path, in_process(Spoils), opt=opt, **amp))
    states: dict[int, list[torch.Tensor]] = {}

    def keep(*_: Any) -> None:
        held = [*trainer.module.parameters()]
        held += [v for s in trainer.updater.optimizer.state.values() for v in s.values()]
        states[trainer.step] = [value.detach().cpu().clone() for value in held]

    trainer.updater.optimizer.register_step_post_hook(keep)
    with pytest.raises(NonFiniteLossError, match="'fake/pull' is not finite at step 10"):
        trainer.run()
    assert trainer.step == 24
    assert all(map(torch.equal, states[9], states[10]))
    assert not all(map(torch.equal, states[10], states[11]))
