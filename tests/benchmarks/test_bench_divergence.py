"""Divergences of whole samples: seconds, memory over the features, and growth from 5,000 rows.

``pytest tests/benchmarks/test_bench_divergence.py -m benchmark -s`` takes a few minutes: up to
50,000 rows of 256 features of each domain, no row left out, every measurement in its own process.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FEW, MANY = 5_000, 50_000

MEASURE = """
import json, sys, time
from pathlib import Path
import numpy as np
from daptkit import shift

def peak():  # MiB
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)) / 1024

name, n = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(0)
source, target = (rng.standard_normal((n, 256), dtype=np.float32) for _ in range(2))
target += np.float32(0.05)
before, started = peak(), time.perf_counter()
value = getattr(shift, name)(source, target, limit=None)
seconds = time.perf_counter() - started
print(json.dumps({"value": value, "seconds": seconds, "mib_over_features": peak() - before}))
"""


def measured(name: str, n: int) -> dict[str, float]:
    command = [sys.executable, "-c", MEASURE, name, str(n)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.benchmark
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["mmd2", "proxy_a_distance", "knn_domain_accuracy"])
def test_whole_samples(benchmark, name):
    few = measured(name, FEW)
    many = benchmark.pedantic(measured, args=(name, MANY), rounds=1)
    benchmark.extra_info.update({str(FEW): few, str(MANY): many})
    benchmark.extra_info["growth"] = many["seconds"] / few["seconds"]
    print(f"\n{name}:", dict(benchmark.extra_info))
    assert many["mib_over_features"] < 1024
