"""Twenty runs killed at random, from outside or inside a save, that continue bit for bit.

``pytest tests/benchmarks/test_bench_kill.py -m benchmark -s`` prints where each one was killed.
``DAPTKIT_KILL_SEED`` chooses other places.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import daptkit
from test_train_kill import ROOT, configuration, kill

ROUNDS = 20
STEPS, SAVES = 200, 4
"""Steps and saves of twin and method together."""

RUN = """
import sys
from pathlib import Path

import daptkit
from daptkit.train import loop
from test_train_kill import configuration

train = loop.Trainer.run

def run(self):
    print("training", flush=True)
    return train(self)

loop.Trainer.run = run
daptkit.adapt(configuration(Path(sys.argv[1])))
print("done", flush=True)
"""

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1800)]


def started(folder: Path) -> subprocess.Popen[str]:
    """Start a run in a process of its own; return when its training begins."""
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]),
            "DAPTKIT_CACHE": str(folder / "cache"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    return process


def kill_from_outside(folder: Path, delay: float) -> str:
    process = started(folder)
    time.sleep(delay)
    process.kill()
    process.communicate()
    ended = "killed" if process.returncode == -signal.SIGKILL else "had ended by itself"
    return f"{ended} after {delay:.2f} s"


def results(folder: Path) -> dict[str, bytes]:
    """Return what twin and method leave: metrics, predictions and weights."""
    names = ("metrics.jsonl", "predictions.csv", "model/model.safetensors")
    return {
        f"{part}{n}": (folder / f"{part}{n}").read_bytes() for part in ("", "twin/") for n in names
    }


def test_runs_that_are_killed_at_random_continue_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(int(os.environ.get("DAPTKIT_KILL_SEED", "0")))
    process = started(tmp_path / "whole")
    began = time.perf_counter()
    process.communicate()
    lasts = time.perf_counter() - began
    assert process.returncode == 0
    whole = results(tmp_path / "whole" / "run")
    killed = 0
    for number in range(ROUNDS):
        folder = tmp_path / f"round{number}"
        where = draw.choice(("outside", "outside", "step", "save"))
        if where == "outside":
            said = kill_from_outside(folder, draw.uniform(0.0, lasts))
        else:
            count = draw.randint(1, STEPS if where == "step" else SAVES)
            kill(folder, where, count)
            said = f"killed at {where} {count}"
        killed += said.startswith("killed")
        monkeypatch.setenv("DAPTKIT_CACHE", str(folder / "cache"))
        again = daptkit.adapt(configuration(folder, resume=True))
        found = results(again.out)
        differ = [name for name, content in whole.items() if found[name] != content]
        print(f"round {number + 1}: {said}; {', '.join(differ) or 'all equal'}")
        assert not differ
        assert not list(again.out.rglob(".last.ckpt.*"))
    assert killed >= ROUNDS // 2
