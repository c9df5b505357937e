"""A checkpoint remembers the packages of its methods; a run continued by others says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.train.checkpoint import load_checkpoint
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter
from daptkit.train.versions import changed_fits, version_changes
from fakes import in_process, make_job, method_of, tiny_config


class Lines(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def losses(stop_at: int | None) -> Any:
    def of(self: Any, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        if ctx.step == stop_at:
            raise KeyboardInterrupt
        return {"pull": (target.features.mean() - source.features.mean()).square()}

    return of


def trained(folder: Path, version: str, stop_at: int | None = None) -> list[str]:
    config = tiny_config(folder, epochs=2)
    method = replace(in_process(method_of(losses(stop_at))), version=version)
    job, _ = make_job(config, method)
    reporter = Lines()
    Trainer(replace(job, reporter=reporter)).run()
    return reporter.lines


def test_another_version_is_told_when_a_run_continues(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "1.2", stop_at=60)
    state, _ = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert state is not None
    assert state["packages"] == {"fake": "daptkit-fake 1.2"}
    (told,) = [line for line in trained(tmp_path, "2.0") if "warning" in line]
    assert "method 'fake' was daptkit-fake 1.2 when the checkpoint was written" in told
    assert "is daptkit-fake 2.0 now" in told


def test_the_same_version_is_no_news(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, "1.2", stop_at=60)
    assert not [line for line in trained(tmp_path, "1.2") if "warning" in line]


def test_another_fit_is_found_and_rounding_is_not() -> None:
    table = torch.tensor([1e-5, 0.0, 2e-5])
    now = {"shade": {"table": table, "gain": torch.tensor(float("nan"))}}

    def with_table(x: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        return {"shade": {**now["shade"], "table": x}}

    for same in (now, with_table((1 + 1e-5) * table), None):
        assert changed_fits(same, now) == []
    other = (2 * table, table[:2], torch.full((3,), float("nan")))
    for before in (*map(with_table, other), {}, {"shade": {"table": table}}):
        assert changed_fits(before, now) == ["shade"]
    assert changed_fits(now, {}) == ["shade"]


def test_checkpoints_of_before_say_nothing() -> None:
    assert version_changes({}, {"dann": "daptkit-dann 0.1.0"}) == []
