"""The feature cache of frozen runs on real images: what a second run, 20 epochs and a view cost.

``OMP_NUM_THREADS=1 pytest tests/benchmarks/test_bench_features.py -m benchmark -s`` takes a few
minutes: chest X-rays of two hospitals, MobileNetV2 at 160 px. Times are compared within one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daptkit.config import resolve_config
from daptkit.data import Augment, Conversion, ImageSet, read_table
from daptkit.host import method_options
from daptkit.model import AdaptNet, FeatureCache
from daptkit.recipes import adapt
from daptkit.train.loop import Trainer
from daptkit.train.network import network_source
from daptkit.train.views import ViewImages

SIZE, ROUNDS = 160, 3
EPOCHS = 20
SUBSET = 384
"""Images that one view is timed on."""


class Clock:
    """Seconds spent on features and in each training, and images that passed the trunk."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.features = 0.0
        self.training: dict[str, float] = {}
        self.images = 0
        features, trunk, run = FeatureCache.trunk_features, AdaptNet.trunk, Trainer.run

        def timed_features(cache: FeatureCache, *arguments: Any, **values: Any) -> torch.Tensor:
            spent, found = seconds(lambda: features(cache, *arguments, **values))
            self.features += spent
            return found

        def counted(net: AdaptNet, images: torch.Tensor, *how: Any) -> torch.Tensor:
            # Blank images only tell sizes.
            self.images += len(images) if images.any() else 0
            return trunk(net, images, *how)

        def timed_run(trainer: Trainer) -> Any:
            spent, found = seconds(lambda: run(trainer))
            name = trainer.job.label if trainer.job.folder else f"folds of {trainer.job.label}"
            self.training[name] = self.training.get(name, 0.0) + spent
            return found

        patch.setattr(FeatureCache, "trunk_features", timed_features)
        patch.setattr(AdaptNet, "trunk", counted)
        patch.setattr(Trainer, "run", timed_run)


def options(shared_data: Path, method: str, out: Path) -> dict[str, Any]:
    sites = shared_data / "data" / "pneumonia_cxr"
    return {
        "source": (str(sites / "nih_adult.csv"),),
        "target": str(sites / "guangzhou_pediatric.csv"),
        "method": method,
        "out": str(out),
        "model": "mobilenetv2_100",
        "model_kwargs": ("pad_type=same",),
        "pretrained_path": str(shared_data / "weights" / "mobilenetv2_100.pth"),
        "mean": (0.5,),
        "std": (0.5,),
        "img_size": SIZE,
        "finetune": "frozen",
        "epochs": EPOCHS,
        "device": "cpu",
        "workers": 1,
    }


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


@pytest.mark.timeout(1800)
def test_a_second_run_and_its_epochs(benchmark, shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    totals, clocks = {}, {}
    for method in ("coral", "mmd"):
        given = options(shared_data, method, tmp_path / method)
        with monkeypatch.context() as patch:
            clocks[method] = Clock(patch)
            totals[method], found = seconds(lambda given=given: adapt(**given))
    first, second = clocks["coral"], clocks["mmd"]
    benchmark.extra_info.update(
        images_through_the_trunk={"first run": first.images, "second run": second.images},
        reading_over_extraction=second.features / first.features,
        epochs_over_extraction=second.training["mmd"] / first.features,
        seconds={
            "extraction": first.features,
            "reading": second.features,
            "20 epochs": second.training,
            "first run, with twin and report": totals["coral"],
            "second run, with report": totals["mmd"],
        },
    )
    print("\n", dict(benchmark.extra_info))
    assert found.data["data"]["trunk_features_from_cache"] == 2
    assert second.images == 0
    assert second.features <= first.features / 10
    assert second.training["mmd"] < first.features
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.timeout(1800)
def test_a_view_over_plain_images(benchmark, shared_data, tmp_path):
    torch.set_num_threads(1)
    config = resolve_config(options(shared_data, "none", tmp_path / "run"), None, method_options)
    net = network_source(config, ("normal", "pneumonia")).make(torch.device("cpu"))
    table = read_table(config.source[0], domain="source", labelled=True)
    table = table.select(np.arange(SUBSET))
    images = ImageSet(table, Conversion(img_size=SIZE, in_chans=3), workers=1)
    sets = {
        "plain": images,
        "view": ViewImages(images, np.arange(SUBSET), Augment("xray"), 0, 0),
    }
    cache, spent = FeatureCache(tmp_path), {name: [] for name in sets}
    for turn in range(ROUNDS):
        for name, one in sets.items():
            parts = {"data": name, "conversion": {}, "turn": turn}
            extract = partial(
                cache.trunk_features, net, one, key_parts=parts, device="cpu", batch_size=64
            )
            spent[name].append(seconds(extract)[0] / SUBSET)
    ratio = min(spent["view"]) / min(spent["plain"])
    benchmark.extra_info.update(seconds_an_image=spent, view_over_plain=ratio)
    print("\n", dict(benchmark.extra_info))
    assert ratio < 1.5
    benchmark.pedantic(lambda: None, rounds=1)
