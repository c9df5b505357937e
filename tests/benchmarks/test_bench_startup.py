"""Start-up time of the commands that answer at once, over that of click and rich alone."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

REPEATS = 15
COMMANDS = [("--help",), ("plugins", "list"), ("adapt", "-m", "dann", "--help")]


def seconds(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


@pytest.mark.benchmark
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_startup(benchmark, command):
    seconds("-m", "daptkit", *command)
    pairs = [
        (seconds("-m", "daptkit", *command), seconds("-c", "import click, rich"))
        for _ in range(REPEATS)
    ]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    benchmark.extra_info.update(seconds=ours, baseline=theirs, ratio=ours / theirs)
    benchmark.pedantic(seconds, args=("-m", "daptkit", *command), rounds=1)
