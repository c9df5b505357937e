"""Runs that are killed outright, at a step or inside a save, continue bit for bit."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import daptkit
from daptkit.config import AdaptConfig, resolve_config
from daptkit.host import method_options
from fakes import tiny_config

ROOT = Path(__file__).resolve().parent.parent

VICTIM = """
import contextlib, os, signal, sys
from pathlib import Path

import daptkit
from daptkit.train import checkpoint, loop
from test_train_kill import configuration

folder, where, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
train_step, atomic_file = loop.Trainer._train_step, checkpoint.atomic_file
steps = saves = 0

def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

def step(self, *arguments):
    global steps
    train_step(self, *arguments)
    steps += 1
    if (where, count) == ("step", steps):
        die()

class Dying:
    # A file that is cut off in the middle of its eighth piece, one of the tensors.

    def __init__(self, file):
        self.file, self.pieces = file, 0

    def write(self, content):
        self.pieces += 1
        if self.pieces == 8:
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            die()
        self.file.write(content)

@contextlib.contextmanager
def save(path):
    global saves
    saves += 1
    with atomic_file(path) as file:
        yield Dying(file) if (where, count) == ("save", saves) else file

loop.Trainer._train_step, checkpoint.atomic_file = step, save
daptkit.adapt(configuration(folder))
"""


def configuration(folder: Path, **values: Any) -> AdaptConfig:
    """Two runs of 100 steps: the twin's and the method's, with a checkpoint every 50."""
    config = tiny_config(folder, method="dann+bbse", epochs=2, dropout=0.2, aug="digits", **values)
    flags = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != f.default or f.name in ("source", "target", "out")
    }
    return resolve_config(flags, None, method_options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAPTKIT_CACHE", str(folder / "cache"))
        return daptkit.adapt(configuration(folder)).out


def kill(folder: Path, where: str, count: int) -> None:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", VICTIM, str(folder), where, str(count)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "DAPTKIT_CACHE": str(folder / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


# Step 171 is in the second epoch of the method; save 2 is the last of the twin.
@pytest.mark.parametrize(("where", "count"), [("step", 171), ("save", 2)])
def test_a_killed_run_continues_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, where: str, count: int
) -> None:
    kill(tmp_path, where, count)
    unfinished = list(tmp_path.rglob(".last.ckpt.*"))
    assert [path.stat().st_size > 0 for path in unfinished] == ([True] if where == "save" else [])
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    result = daptkit.adapt(configuration(tmp_path, resume=True))
    for name in (
        "metrics.jsonl",
        "predictions.csv",
        "model/model.safetensors",
        "twin/metrics.jsonl",
        "twin/predictions.csv",
        "twin/model/model.safetensors",
    ):
        assert (result.out / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(result.out.rglob(".last.ckpt.*"))
