"""The cache of source-only models: reused, damaged, raced for, unwritable."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daptkit.run import RunFolder
from daptkit.train.adaptation import run_adaptation
from daptkit.train.crossfit import HeldOut
from daptkit.train.progress import SilentReporter
from daptkit.train.twin import keep_twin, obtain_twin
from fakes import make_job, tiny_config


class Listener(SilentReporter):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "twins"


def run(folder: Path, out: str, **values: Any) -> tuple[Any, list[str]]:
    listener = Listener()
    config = tiny_config(folder, out=str(folder / out), **values)
    return run_adaptation(config, listener).result, listener.lines


def entry(cache: Path) -> Path:
    (found,) = cache.iterdir()
    return found


def kept(tmp_path: Path, listener: Listener) -> tuple[Any, RunFolder, HeldOut]:
    """A finished source-only run whose entry in the cache has been removed."""
    run(tmp_path, "first")
    shutil.rmtree(tmp_path / "cache")
    _, maker = make_job(tiny_config(tmp_path, out=str(tmp_path / "second")))
    held_out = HeldOut(np.zeros((30, 3)), np.zeros(30, np.int64), 1)
    return replace(maker, reporter=listener), RunFolder(tmp_path / "first"), held_out


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model/model.json", "cut"),
        ("model/model.safetensors", "cut"),
        ("metrics.jsonl", "cut"),
        ("held_out.safetensors", "cut"),
        ("sha256.json", "gone"),
    ],
)
def test_a_damaged_entry_is_told_of_and_replaced(
    tmp_path: Path, cache: Path, name: str, damage: str
) -> None:
    first, _ = run(tmp_path, "first")
    broken = entry(cache) / name
    if damage == "cut":
        broken.write_bytes(broken.read_bytes()[:-20])
    else:
        broken.unlink()
    second, lines = run(tmp_path, "second")
    assert "source-only twin: the cached one is damaged and is trained again" in lines
    third, lines = run(tmp_path, "third")
    assert "source-only twin: reused from an earlier run" in lines
    for again in (second, third):
        for file in ("metrics.jsonl", "predictions.csv"):
            assert (again.out / file).read_bytes() == (first.out / file).read_bytes()


def test_a_half_trained_twin_gives_way_to_a_whole_one(tmp_path: Path, cache: Path) -> None:
    whole, _ = run(tmp_path, "whole")
    half = tmp_path / "half"
    shutil.copytree(whole.out, half, ignore=shutil.ignore_patterns("model", "*.csv", "run.json"))
    (half / "metrics.jsonl").write_text('{"kind": "step"}\n')
    again, _ = run(tmp_path, "half", resume=True)
    assert (again.out / "metrics.jsonl").read_bytes() == (whole.out / "metrics.jsonl").read_bytes()


def test_two_runs_may_keep_the_same_twin(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other writer finishes while this one copies: neither entry is half of each."""
    listener = Listener()
    maker, folder, held_out = kept(tmp_path, listener)
    copytree = shutil.copytree

    def overtaken(*arguments: Any, **values: Any) -> Any:
        monkeypatch.setattr(shutil, "copytree", copytree)
        keep_twin(folder, maker, held_out)
        return copytree(*arguments, **values)

    monkeypatch.setattr(shutil, "copytree", overtaken)
    keep_twin(folder, maker, held_out)
    assert listener.lines == []
    assert [path.name for path in cache.iterdir()] == [entry(cache).name]
    assert obtain_twin(RunFolder(tmp_path / "second"), maker).cached


def test_a_cache_that_cannot_be_written_costs_a_line(tmp_path: Path, cache: Path) -> None:
    listener = Listener()
    maker, folder, held_out = kept(tmp_path, listener)
    cache.parent.write_text("a file where the cache should be")
    keep_twin(folder, maker, held_out)
    (line,) = listener.lines
    assert line.startswith("the source-only twin was not kept for further runs: ")
    assert not obtain_twin(RunFolder(tmp_path / "second"), maker).cached


def test_the_key_knows_what_matters(tmp_path: Path, cache: Path) -> None:
    def cached(**values: Any) -> bool:
        _, maker = make_job(tiny_config(tmp_path, out=str(tmp_path / "x"), **values))
        twin = obtain_twin(RunFolder(tmp_path / f"probe{len(list(tmp_path.iterdir()))}"), maker)
        return twin.cached

    run(tmp_path, "first")
    assert cached(decide="balanced", workers=2)
    for other in ({"seed": 3}, {"lr": 0.02}, {"val_fraction": 0.3}, {"bottleneck": 8}):
        assert not cached(**other), other


def test_the_twin_of_a_method_starts_where_the_method_starts(tmp_path: Path, cache: Path) -> None:
    job, maker = make_job(tiny_config(tmp_path))
    again = maker.make(maker.prepared.data, None)
    for name, value in job.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name])
