"""``data check`` of chest X-rays over one decode of each in Pillow, with the same threads."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from daptkit.data import Readers, read_table
from daptkit.data.check import scan_table
from daptkit.data.check.pairs import alike_groups
from daptkit.recipes.checking import check_data

ROUNDS = 5
LARGE, LARGE_IMAGES = 1500, 150


def decode_all(paths: list[Path], workers: int) -> None:
    def decode(path: Path) -> tuple[int, ...]:
        with Image.open(path) as image:
            image.load()
            return np.asarray(image).shape

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(decode, paths))


def read_all(folder: Path, workers: int) -> None:
    table = read_table(folder, domain="target", labelled=False)
    scan_table(table, Readers(), workers=workers)


def seconds(call: Any, *arguments: Any, **options: Any) -> tuple[float, float]:
    """Return wall time and processor time."""
    wall, processor = time.perf_counter(), time.process_time()
    call(*arguments, **options)
    return time.perf_counter() - wall, time.process_time() - processor


def enlarged(folder: Path, out: Path) -> Path:
    """Write some of the images at the size of a radiograph, as grey JPEG."""
    for number, path in enumerate(sorted(folder.rglob("*.*"))[:LARGE_IMAGES]):
        image = Image.open(path).convert("L").resize((LARGE, LARGE), Image.Resampling.BICUBIC)
        image.save(out / f"{number}.jpg", quality=92)
    return out


@pytest.mark.benchmark
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("site", ["guangzhou_pediatric", "nih_adult", "enlarged"])
def test_data_check(
    benchmark: Any, shared_data: Path, tmp_path: Path, site: str, workers: int
) -> None:
    sites = shared_data / "data" / "pneumonia_cxr"
    folder = enlarged(sites / "nih_adult", tmp_path) if site == "enlarged" else sites / site
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    calls = {
        "pillow": (decode_all, paths),
        "read": (read_all, folder),
        "check": (check_data, folder),
    }
    check_data(folder, workers=workers)
    rounds = [
        {name: seconds(call, where, workers=workers) for name, (call, where) in calls.items()}
        for _ in range(ROUNDS)
    ]
    for which, clock in enumerate(("wall", "processor")):
        medians = {n: statistics.median(one[n][which] for one in rounds) for n in calls}
        ratios = {n: medians["pillow"] / medians[n] for n in calls if n != "pillow"}
        benchmark.extra_info[clock] = {"seconds": medians, "as fast as Pillow": ratios}
    print(site, workers, dict(benchmark.extra_info))
    benchmark.pedantic(check_data, args=(folder,), kwargs={"workers": workers}, rounds=1)


@pytest.mark.benchmark
@pytest.mark.parametrize("count", [1_000, 10_000, 100_000])
def test_search_for_alike_images(benchmark: Any, count: int) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (count, 4)).astype(np.uint64)
    benchmark.pedantic(alike_groups, args=(hashes, 24), rounds=1)
