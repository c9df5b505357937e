"""Interrupted runs continue bit for bit; damaged checkpoints are found."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.errors import DaptkitError, Terminated
from daptkit.method import Method
from daptkit.train.checkpoint import load_checkpoint, save_checkpoint
from daptkit.train.loop import Trainer
from fakes import in_process, make_job, method_of, tiny_config


def noisy(kill_at: int | None = None, number: int = signal.SIGTERM) -> type[Method]:
    """A method with state and random numbers, which may send a signal to its own process."""

    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        if ctx.step == kill_at:
            os.kill(os.getpid(), number)
        shake = torch.rand((), generator=ctx.generator) + torch.rand(())
        ctx.log("shake", shake)
        return {"pull": (target.features.mean() - source.features.mean()).square() * shake}

    return method_of(losses)


def trained(folder: Path, factory: type[Method]) -> tuple[bytes, dict[str, torch.Tensor]]:
    config = tiny_config(folder, epochs=2, dropout=0.2, aug="digits")
    job, _ = make_job(config, in_process(factory))
    Trainer(job).run()
    return job.folder.metrics.read_bytes(), job.net.state_dict()


@pytest.mark.parametrize("kill_at", [3, 49, 64])
def test_a_terminated_run_continues_bit_for_bit(tmp_path: Path, kill_at: int) -> None:
    whole_metrics, whole = trained(tmp_path / "whole", noisy())
    with pytest.raises(Terminated, match="checkpoint was written"):
        trained(tmp_path / "cut", noisy(kill_at))
    metrics, weights = trained(tmp_path / "cut", noisy())
    assert metrics == whole_metrics
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_lines_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    whole_metrics, _ = trained(tmp_path / "whole", noisy())
    with pytest.raises(Terminated):
        trained(tmp_path / "cut", noisy(64))
    with (tmp_path / "cut" / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "step": 70')
    metrics, _ = trained(tmp_path / "cut", noisy())
    assert metrics == whole_metrics


def test_ctrl_c_writes_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, noisy(20, signal.SIGINT))
    state, _ = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert state is not None
    assert state["step"] == 21


def test_a_signal_after_the_last_step_is_not_lost(tmp_path: Path) -> None:
    class Late(Method):
        calls = 0

        def on_fit_end(self, ctx: Any) -> None:
            Late.calls += 1
            if Late.calls == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        trained(tmp_path, Late)
    metrics, _ = trained(tmp_path, Late)
    assert metrics.count(b'"kind": "epoch"') == 2


def test_weights_in_force_survive_an_interruption(tmp_path: Path) -> None:
    """Their owner may change its mind within an epoch, which keeps what it began with."""

    def owner(kill_at: int | None) -> type[Method]:
        class Owner(noisy(kill_at)):  # type: ignore[misc]
            def __init__(self, options: Any, task: Any) -> None:
                super().__init__(options, task)
                self.register_buffer("held", torch.ones(3))

            def class_weights(self) -> torch.Tensor:
                return self.held

            def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
                self.held[0] += 0.1
                ctx.log("weight", ctx.class_weights[0])
                return super().losses(source, target, ctx)  # type: ignore[no-any-return]

        return Owner

    def run(folder: Path, kill_at: int | None = None) -> bytes:
        config = tiny_config(folder, epochs=2)
        loaded = in_process(owner(kill_at), roles=frozenset({"class_weights"}))
        job, _ = make_job(config, loaded)
        Trainer(job).run()
        return job.folder.metrics.read_bytes()

    whole = run(tmp_path / "whole")
    with pytest.raises(Terminated):
        run(tmp_path / "cut", 64)
    assert run(tmp_path / "cut") == whole


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step})
    content = bytearray((tmp_path / "last.ckpt").read_bytes())
    content[-10] ^= 1
    (tmp_path / "last.ckpt").write_bytes(content)
    state, damaged = load_checkpoint(tmp_path)
    assert state == {"step": 1}
    assert damaged == ("last.ckpt",)
    # A save renames the last one first: if it were still there, nothing usable would be left.
    assert [path.name for path in tmp_path.iterdir()] == ["previous.ckpt"]
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(DaptkitError, match="no checkpoint of the run can be read"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, noisy())
    job, _ = make_job(tiny_config(tmp_path, epochs=2, bottleneck=8), in_process(noisy()))
    with pytest.raises(DaptkitError, match="the checkpoint does not fit the run"):
        Trainer(job)


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) == (None, ())
