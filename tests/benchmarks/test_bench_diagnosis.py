"""Error rate, power and right answers of the diagnosis of shift, and its time on large sites.

``pytest tests/benchmarks/test_bench_diagnosis.py -m benchmark -s`` takes a quarter of an hour and
prints the tables: 200 draws without a shift, 40 of each kind, of Gaussian features that move across
or along the classes, and of digits; 20,000 images of 256 features of each site.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import binomtest

from daptkit.shift.verdict import any_shift_p
from shift_worlds import WORLDS, Digits, answered, gaussian_pair, moved_pair

DRAWS = {"none": 200, "label": 40, "covariate": 40, "both": 40}

MEASURE = """
import json, sys, time
from pathlib import Path
import numpy as np
from daptkit.shift import diagnose_shift

def peak():  # MiB
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)) / 1024

n, per, rng = 20_000, int(sys.argv[1]), np.random.default_rng(0)
means = 0.35 * rng.normal(size=(5, 256))

def site(prior, offset):
    groups = np.repeat(np.arange(n // per), per)
    y = rng.choice(5, n // per, p=prior)[groups]
    x = means[y] + 0.7 * rng.normal(size=(n // per, 256))[groups] + 0.7 * rng.normal(size=(n, 256))
    x[:, :10] += offset
    logits = x @ means.T - 0.5 * (means**2).sum(1)
    return x.astype(np.float32), logits.astype(np.float32), y, groups

x, z, y, g = site(np.full(5, 0.2), 0.0)
t, u, _, h = site(np.arange(1, 6) / 15, 0.1)
before, started = peak(), time.perf_counter()
found = diagnose_shift(x, z, y, t, u, source_groups=g, target_groups=h, stages={"early": (x, t)})
seconds = time.perf_counter() - started
print(json.dumps({"kind": found.kind, "seconds": seconds, "mib_over_arrays": peak() - before}))
"""


def table(name, pair, draws=DRAWS):
    """Print each world's answers and rejections; return them."""
    answers, rejected = {}, {}
    for world in WORLDS:
        found = [answered(*pair(world, seed), seed) for seed in range(draws[world])]
        answers[world] = Counter(d.kind for d in found)
        tests = ("domains", "prior", "residual")
        rejected[world] = {t: sum(getattr(d, t).p <= 0.05 for d in found) for t in tests}
        rejected[world]["any"] = sum(
            any_shift_p(d.domains, d.prior, d.residual) <= 0.05 for d in found
        )
        print(f"\n{name} {world} ({draws[world]}): {dict(answers[world])}", end="")
        for test, count in rejected[world].items():
            low, high = binomtest(count, draws[world]).proportion_ci(method="wilson")
            print(
                f"; {test} {count / draws[world]:.3f} [{low:.3f}, {high:.3f}]", end="", flush=True
            )
    print()
    return answers, rejected


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["gaussian", "moved", "digits"])
def test_level_and_power(name, request):
    pair = moved_pair if name == "moved" else gaussian_pair
    if name == "digits":
        pair = Digits(Path(request.getfixturevalue("shared_data")) / "data").pair
    answers, rejected = table(name, pair)
    for test in ("domains", "prior", "residual", "any"):
        low = binomtest(rejected["none"][test], DRAWS["none"]).proportion_ci(method="wilson").low
        assert low <= 0.05, test
    for world in ("label", "covariate", "both"):
        assert rejected[world]["any"] >= 0.9 * DRAWS[world]
    if name != "digits":
        for world in WORLDS:
            assert answers[world][world] >= 0.85 * DRAWS[world]


@pytest.mark.benchmark
@pytest.mark.timeout(600)
@pytest.mark.parametrize("per_patient", [1, 4])
def test_large_sites(per_patient):
    command = [sys.executable, "-c", MEASURE, str(per_patient)]
    measured = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(measured)
    print(f"\n20,000 + 20,000 x 256, {per_patient} images a patient:", found)
    assert found["kind"] == "both"
    assert found["mib_over_arrays"] < 1536
