"""Opening, splitting and the first batch of a manifest of 10,000 and 100,000 rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIZES = (10_000, 100_000)
LINKS = 20_000
"""Names of one file; a file system allows about 65,000."""

MEASURE = """
import json, sys, time
from pathlib import Path
from daptkit.data import Conversion, ImageSet, encode_labels, class_names, read_table
from daptkit.data import find_overlaps, train_val_split

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024

seconds, start = {}, peak()

def timed(name, call):
    began = time.perf_counter()
    result = call()
    seconds[name] = time.perf_counter() - began
    return result

path = Path(sys.argv[1])
table = timed("open", lambda: read_table(path, domain="source", labelled=True))
timed("overlaps", lambda: find_overlaps([table], None))
labels = timed("encode", lambda: encode_labels(table, class_names(table.labels)))
split = lambda: train_val_split(table, labels, split=None, val_fraction=0.2, seed=0)
rows, _ = timed("split", split)
timed("groups", table.groups)
listed = peak()
conversion = Conversion(img_size=32, in_chans=1)
part = table.select(rows[:64])
timed("first 64 images", lambda: ImageSet(part, conversion).batch(range(64)))
images = timed("all images", lambda: ImageSet(table, conversion))
timed("a batch of them", lambda: images.batch(rows[:64]))
kept = len(table) * 32 * 32 / 2**20
memory = {"table": listed - start, "with images": peak() - start, "pixels": kept}
print(json.dumps({"rows": len(table), "seconds": seconds, "MiB": memory}))
"""


def write_manifest(folder: Path, rows: int) -> Path:
    """Write a manifest of hard links to a few small images; two images of each patient."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    lines = ["path,label,patient_id,site"]
    for row in range(rows):
        path = folder / "images" / f"{row:06}.png"
        if row % LINKS == 0:
            first = path
            Image.fromarray(rng.integers(0, 256, (32, 32)).astype(np.uint8)).save(path)
        else:
            os.link(first, path)
        lines.append(f"images/{row:06}.png,class{row % 5},p{row // 2},north")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def measure(manifest: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", MEASURE, str(manifest)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


@pytest.mark.benchmark
def test_manifest(benchmark: Any, tmp_path: Path) -> None:
    manifests = [write_manifest(tmp_path / str(rows), rows) for rows in SIZES]
    small, large = (measure(manifest) for manifest in manifests)
    growth = {name: large["seconds"][name] / s for name, s in small["seconds"].items()}
    benchmark.extra_info.update(small=small, large=large, growth=growth)
    print(json.dumps(benchmark.extra_info, indent=1))
    benchmark.pedantic(measure, args=(manifests[0],), rounds=1)
