"""An epoch of images from the warm decode cache, over torchvision's ImageFolder and DataLoader."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets, transforms

from daptkit.data import (
    Augment,
    Conversion,
    DecodeCache,
    ImageSet,
    batch_indices,
    read_table,
    to_float,
)

SIZE, BATCH, WORKERS, ROUNDS = 160, 64, 2, 3
SITE = "data/pneumonia_cxr/guangzhou_pediatric"
BILINEAR = transforms.InterpolationMode.BILINEAR
CONVERSION = Conversion(img_size=SIZE, in_chans=3)

PEAK = """
import sys
import numpy as np
from pathlib import Path
from daptkit.data import Conversion, DecodeCache, ImageSet, read_table

site, cache, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
table = read_table(site, domain="source", labelled=False).select(range(count))
conversion = Conversion(img_size=160, in_chans=3)
images = ImageSet(table, conversion, workers=2, cache=DecodeCache(cache))
rows = (np.arange(s, min(s + 64, count)) for s in range(0, count, 64))
total = sum(int(batch[0, 0, 0, 0]) for batch in images.prefetch(rows))
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def loader(site: Path, *, augmented: bool) -> torch.utils.data.DataLoader:
    steps = [transforms.Resize((SIZE, SIZE))]
    if augmented:
        steps.append(
            transforms.RandomAffine(
                10, translate=(0.08, 0.08), scale=(0.85, 1.15), interpolation=BILINEAR
            )
        )
    dataset = datasets.ImageFolder(site, transforms.Compose([*steps, transforms.ToTensor()]))
    return torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=WORKERS)


def their_epoch(site: Path, *, augmented: bool) -> int:
    return sum(len(images) for images, _ in loader(site, augmented=augmented))


def opened(site: Path, cache: Path) -> ImageSet:
    table = read_table(site, domain="source", labelled=True)
    return ImageSet(table, CONVERSION, workers=WORKERS, cache=DecodeCache(cache))


def our_epoch(images: ImageSet, *, augmented: bool) -> int:
    steps = -(-len(images) // BATCH)
    rows = (batch_indices(len(images), BATCH, seed=0, stream=0, step=s) for s in range(steps))
    augment, generator = Augment("xray" if augmented else "none"), torch.Generator()
    return sum(len(augment(to_float(batch), generator)) for batch in images.prefetch(rows))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "augmented"])
def test_epoch(benchmark, shared_data, tmp_path, augmented):
    torch.set_num_threads(WORKERS)
    site = shared_data / SITE
    images = opened(site, tmp_path)
    rounds = [
        (
            seconds(lambda: their_epoch(site, augmented=augmented)),
            seconds(lambda: our_epoch(images, augmented=augmented)),
            seconds(lambda: opened(site, tmp_path)),
        )
        for _ in range(ROUNDS)
    ]
    theirs, ours, opening = (statistics.median(column) for column in zip(*rounds, strict=True))
    benchmark.extra_info.update(
        images=len(images),
        image_folder_seconds=theirs,
        epoch_seconds=ours,
        opening_seconds=opening,
        epoch_ratio=theirs / ours,
        first_epoch_ratio=theirs / (ours + opening),
    )
    assert opened(site, tmp_path).decoded == 0
    benchmark.pedantic(our_epoch, args=(images,), kwargs={"augmented": augmented}, rounds=1)


def test_peak_memory(benchmark, shared_data, tmp_path):
    site = shared_data / SITE
    everything = len(opened(site, tmp_path))

    def peak(count: int) -> int:
        command = [sys.executable, "-c", PEAK, str(site), str(tmp_path), str(count)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    counts = np.linspace(everything / 8, everything, 4).astype(int).tolist()
    benchmark.extra_info["peak_mib"] = {count: peak(count) / 1024 for count in counts}
    benchmark.pedantic(peak, args=(everything,), rounds=1)
