"""A small finished run for the tests of the report: two sites of drawn shapes with patients."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from daptkit.config import AdaptConfig, resolve_config
from daptkit.host import method_options
from daptkit.model import build_model, resolve_model_config
from daptkit.report.embedder import Embedder
from daptkit.train.adaptation import Trained, run_adaptation
from daptkit.train.prepare import Prepared
from daptkit.train.progress import SilentReporter
from fakes import CLASSES, EDGE, drawn

CANARY = "zebrafish"
"""Part of every file name, patient id and path, and of nothing else."""


def dead_embedder() -> Embedder:
    """Return an embedder whose process ends at once, so that every embedding is a PCA."""
    return Embedder(command=[sys.executable, "-c", ""])


def write_site(folder: Path, n: int, seed: int, *, contrast: float = 1.0) -> Path:
    """Write images and a manifest with patients of two images each and two sites."""
    folder.mkdir(parents=True)
    images, labels = drawn(n, seed, contrast=contrast)
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient_id", "site"])
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            name = f"{CANARY}-{row}.png"
            Image.fromarray(image).save(folder / name)
            patient = f"{CANARY}-{seed}-{row // 2}"
            writer.writerow([name, CLASSES[label], patient, f"ward {row // 2 % 2}"])
    return folder / "images.csv"


def backbone_weights(folder: Path) -> Path:
    """Write weights of the run's network, which a frozen run needs."""
    config = resolve_model_config(
        "daptkit_lenet",
        (),
        img_size=EDGE,
        in_chans=1,
        mean=(0.5,),
        std=(0.5,),
        num_classes=len(CLASSES),
        bottleneck=16,
        dropout=0.0,
        factories={},
    )
    torch.manual_seed(0)
    path = folder / f"{CANARY}-weights.pth"
    torch.save(build_model(config).backbone.state_dict(), path)
    return path


def report_config(folder: Path, **values: Any) -> AdaptConfig:
    """Return a run of 50 steps a model on 100 source and 60 target images."""
    folder = folder / CANARY
    if not folder.exists():
        write_site(folder / "a", 100, 1)
        write_site(folder / "b", 60, 2, contrast=0.6)
    given = {
        "source": (str(folder / "a" / "images.csv"),),
        "target": str(folder / "b" / "images.csv"),
        "out": str(folder / "run"),
        "method": "dann",
        "model": "daptkit_lenet",
        "img_size": EDGE,
        "in_chans": 1,
        "bottleneck": 16,
        "epochs": 1,
        "batch_size": 8,
        "aug": "none",
        "log_interval": 10,
        "device": "cpu",
        "workers": 1,
    }
    return resolve_config({**given, **values}, None, method_options)


def finished(
    folder: Path, ready: Callable[[Prepared], None] | None = None, **values: Any
) -> Trained:
    """Train the run of :func:`report_config`."""
    return run_adaptation(report_config(folder, **values), SilentReporter(), ready=ready)
