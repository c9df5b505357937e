"""Faults in the middle of a run: one clear line, and after the repair it continues bit for bit."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from daptkit import run as run_module
from daptkit.config import AdaptConfig
from daptkit.errors import DaptkitError, NonFiniteLossError, PluginError, UsageError
from daptkit.method import Method
from daptkit.run import MetricsLog, RunFolder
from daptkit.train import adaptation
from daptkit.train.checkpoint import load_checkpoint
from daptkit.train.device import Precision
from daptkit.train.guard import batchnorm_guard
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter
from fakes import CLASSES, drawn, in_process, make_job, tiny_config, write_npz, write_weights


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


class Pull(Method):
    """A sound method that draws random numbers."""

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        shake = torch.rand((), generator=ctx.generator)
        return {"pull": (target.features.mean() - source.features.mean()).square() * shake}


def configuration(folder: Path) -> AdaptConfig:
    return tiny_config(folder, epochs=2, dropout=0.2, aug="digits")


def train(folder: Path, factory: type[Method] = Pull) -> tuple[bytes, dict[str, torch.Tensor]]:
    """Train, or continue, 100 steps in two epochs; return metrics and weights."""
    job, _ = make_job(configuration(folder), in_process(factory))
    Trainer(job).run()
    assert job.folder is not None
    return job.folder.metrics.read_bytes(), job.net.state_dict()


def assert_continues(folder: Path, whole: Path) -> None:
    """Continue a broken run, and compare it to one that was never broken."""
    metrics, weights = train(folder)
    whole_metrics, whole_weights = train(whole)
    assert metrics == whole_metrics
    for name, value in whole_weights.items():
        assert torch.equal(weights[name], value), name


class Fails(Pull):
    """Raises at step 64 or in the hook that ``where`` names, in the second epoch."""

    where = ""

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        if self.where == "losses" and ctx.step == 64:
            raise KeyError("centroid")
        found = super().losses(source, target, ctx)
        if ctx.step == 64 and self.where == "nan":
            found["pull"] = found["pull"] * float("nan")
        if ctx.step == 64 and self.where == "nan gradient":
            # The root's slope at 0 is infinite: the loss is finite, its gradient is not.
            found["root"] = (0.0 * target.features).sum().sqrt()
        return found

    def on_epoch_end(self, ctx: Any) -> None:
        if self.where == "on_epoch_end" and ctx.epoch == 2:
            raise KeyError("centroid")

    def on_fit_end(self, ctx: Any) -> None:
        if self.where == "on_fit_end":
            raise KeyError("centroid")


@pytest.mark.parametrize("where", ["losses", "on_epoch_end", "on_fit_end"])
def test_a_plugin_that_raises_is_named_and_nothing_is_lost(tmp_path: Path, where: str) -> None:
    broken = type("Broken", (Fails,), {"where": where})
    said = rf"'fake' \(daptkit-fake 1\.2\) failed in {where}\(\): KeyError: 'centroid'"
    with pytest.raises(PluginError, match=said) as caught:
        train(tmp_path / "cut", broken)
    assert caught.value.exit_code == 4
    state, _ = load_checkpoint(tmp_path / "cut" / "run" / "checkpoints")
    assert state is not None
    assert state["step"] == (100 if where == "on_fit_end" else 50)
    assert_continues(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("where", ["nan", "nan gradient"])
def test_numbers_that_are_not_finite_never_reach_a_checkpoint(tmp_path: Path, where: str) -> None:
    with pytest.raises(NonFiniteLossError, match="the last good state is kept in checkpoints/"):
        train(tmp_path / "cut", type("Broken", (Fails,), {"where": where}))
    state, _ = load_checkpoint(tmp_path / "cut" / "run" / "checkpoints")
    assert state is not None
    assert state["step"] == 50
    assert all(v.isfinite().all() for v in state["module"].values())
    assert_continues(tmp_path / "cut", tmp_path / "whole")


class Overflows(Pull):
    """Has, at some steps, a gradient that is not finite at any of float16's loss scales."""

    since, until = 64, 65

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        found = super().losses(source, target, ctx)
        if self.since <= ctx.step < self.until:
            # The root's slope at 0 is infinite, whatever the scale.
            found["root"] = (0.0 * target.features).sum().sqrt()
        return found


def with_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale losses as for float16, which a CPU's steps do not compute in."""
    monkeypatch.setattr(Precision, "new_scaler", lambda self: torch.amp.GradScaler("cpu"))


def test_one_overflow_leaves_out_one_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scaler(monkeypatch)
    job, _ = make_job(configuration(tmp_path), in_process(Overflows))
    trainer = Trainer(job)
    apply, kept, scales = trainer.updater.apply, [], []

    def watched(losses: Any, step: int) -> None:
        before = {name: p.detach().clone() for name, p in job.net.named_parameters()}
        apply(losses, step)
        kept.append(all(torch.equal(p, before[name]) for name, p in job.net.named_parameters()))
        scales.append(trainer.updater.state()["scaler"]["scale"])

    monkeypatch.setattr(trainer.updater, "apply", watched)
    trainer.run()
    assert [step for step, same in enumerate(kept) if same] == [64]
    assert scales == [65536.0] * 64 + [32768.0] * 36


def test_a_streak_of_overflows_ends_the_run_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_scaler(monkeypatch)
    endless = type("Endless", (Overflows,), {"until": 1000})
    with pytest.raises(NonFiniteLossError, match=r"overflow at every step up to 90.*bfloat16"):
        train(tmp_path / "cut", endless)
    state, _ = load_checkpoint(tmp_path / "cut" / "run" / "checkpoints")
    assert state is not None
    assert state["step"] == 50
    assert state["scaler"]["scale"] == 65536.0
    assert_continues(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("on_call", [1, 2])
def test_a_constructor_that_raises_is_named_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_call: int
) -> None:
    made: list[Any] = []

    class Unmade(Pull):
        def __init__(self, options: Any, task: Any) -> None:
            super().__init__(options, task)
            made.append(self)
            if len(made) == on_call:
                raise ZeroDivisionError("no features")

    monkeypatch.setattr(adaptation, "load_methods", lambda names: [in_process(Unmade)])
    config = replace(configuration(tmp_path), method="fake")
    with pytest.raises(
        PluginError, match=r"'fake' of package daptkit-fake 1\.2 cannot.*no features"
    ) as caught:
        adaptation.run_adaptation(config, SilentReporter())
    assert caught.value.exit_code == 4
    twin = RunFolder(config.out).twin
    assert twin.metrics.exists() == (on_call == 2)
    # The repaired plugin goes on from there.
    adaptation.run_adaptation(replace(config, resume=True), SilentReporter())


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    reporter = SilentReporter()
    monkeypatch.setattr(reporter, "line", said.append)
    for site, seed in (("a", 1), ("b", 2)):
        for number, (image, label) in enumerate(zip(*drawn(45, seed), strict=True)):
            place = tmp_path / site / CLASSES[label] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place)
    sites = {"source": (str(tmp_path / "a"),), "target": str(tmp_path / "b")}
    options = {**sites, **write_weights(tmp_path), "method": "coral"}
    found = []
    # Permissions do not bind the superuser; this file system binds everybody.
    for name, cache in (("kept", str(tmp_path / "cache")), ("lost", "/proc/daptkit-cache")):
        monkeypatch.setenv("DAPTKIT_CACHE", cache)
        config = tiny_config(tmp_path, **options, out=str(tmp_path / name))
        adaptation.run_adaptation(config, reporter)
        files = ("metrics.jsonl", "twin/metrics.jsonl", "predictions.csv")
        found.append([(tmp_path / name / file).read_bytes() for file in files])
    assert found[0] == found[1]
    lost = [text for text in said if "/proc/daptkit-cache" in text or "not kept" in text]
    assert len(lost) == 2, said
    # A frozen run reads its features from there.
    config = tiny_config(tmp_path, **options, finetune="frozen", out=str(tmp_path / "frozen"))
    with pytest.raises(DaptkitError, match=r"feature cache .* cannot be written .*DAPTKIT_CACHE"):
        adaptation.run_adaptation(config, reporter)


def test_a_disk_that_fills_up_during_a_save_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, saves = run_module.os.fsync, 0

    def full(handle: int) -> None:
        nonlocal saves
        saves += Path(f"/proc/self/fd/{handle}").readlink().name.startswith(".last.ckpt.")
        if saves == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DaptkitError, match=r"last\.ckpt': No space left.*Free space") as caught:
            train(tmp_path / "cut")
    assert caught.value.exit_code == 1
    checkpoints = tmp_path / "cut" / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["previous.ckpt"]
    assert_continues(tmp_path / "cut", tmp_path / "whole")


def test_a_disk_that_fills_up_under_the_metrics_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = MetricsLog.write

    def full(self: MetricsLog, entry: Any) -> None:
        write(self, entry)
        if entry["step"] == 70:
            with run_module.writing(self._path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", full)
        with pytest.raises(DaptkitError, match=r"metrics\.jsonl': No space left"):
            train(tmp_path / "cut")
    assert_continues(tmp_path / "cut", tmp_path / "whole")


def test_out_on_a_file_system_that_cannot_be_written(tmp_path: Path) -> None:
    # Permissions do not bind the superuser; this file system binds everybody.
    out = Path("/proc/daptkit-run")
    with pytest.raises(DaptkitError, match=r"cannot write '/proc/daptkit-run'") as caught:
        adaptation.run_adaptation(tiny_config(tmp_path, out=str(out)), SilentReporter())
    assert caught.value.exit_code == 1


def test_a_second_run_on_a_folder_ends_and_leaves_the_first_alone(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    folder = RunFolder(config.out)
    folder.open_for_writing(resume=False)
    with folder.locked():
        folder.config.write_text("of the first")
        with pytest.raises(DaptkitError, match="another process is writing"):
            adaptation.run_adaptation(replace(config, resume=True), SilentReporter())
        assert folder.config.read_text() == "of the first"
        assert {path.name for path in folder.root.iterdir()} == {".lock", "run.toml"}


@pytest.mark.parametrize(("n_source", "n_target"), [(30, 450), (450, 30), (5, 90)])
def test_both_domains_are_seen_wholly_however_their_sizes_differ(
    tmp_path: Path, n_source: int, n_target: int
) -> None:
    write_npz(tmp_path / "source.npz", n=n_source, seed=1)
    write_npz(tmp_path / "target.npz", n=n_target, seed=2, contrast=0.6)
    seen: dict[str, list[int]] = {"source": [], "target": []}

    class Watch(Method):
        def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
            assert len(source) == len(target) == 8  # a batch larger than a domain repeats it
            seen["source"] += source.index.tolist()
            seen["target"] += target.index.tolist()
            return {}

    config = tiny_config(tmp_path, epochs=1)
    job, _ = make_job(config, in_process(Watch))
    trainer = Trainer(job)
    trainer.run()
    assert trainer.step == max(50, -(-max(n_source, n_target) // 8))
    for name, rows in (("source", job.data.train_rows), ("target", job.data.target_rows)):
        counts = np.bincount(seen[name], minlength=max(rows) + 1)[rows]
        assert counts.min() >= 1
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("bn", ["joint", "split"])
def test_one_value_per_channel_is_too_little_for_batchnorm(tmp_path: Path, bn: str) -> None:
    config = tiny_config(tmp_path, model="test_resnet", batch_size=1, bn=bn)
    job, _ = make_job(config, *([in_process(Pull)] if bn == "split" else []))
    with pytest.raises(UsageError, match="--batch-size 2 or more, or --bn frozen"):
        Trainer(job).run()


def test_other_errors_of_value_keep_their_words() -> None:
    with pytest.raises(ValueError, match=r"^shapes$"), batchnorm_guard():
        raise ValueError("shapes")
