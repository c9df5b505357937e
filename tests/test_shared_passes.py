"""A whole run with its report passes no image twice through one state of a model."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daptkit.model import AdaptNet
from daptkit.model.network import state_fingerprint
from daptkit.report.build import report_trained
from daptkit.report.restore import restore
from daptkit.train.progress import SilentReporter
from report_runs import backbone_weights, dead_embedder, finished

Seen = Counter[tuple[str, bytes, bool]]
"""How often an input passed a model: weights, input, whether stages of the backbone were tapped."""

METHOD = "dann+bbse"
FROZEN = {"finetune": "frozen", "aug": "auto"}


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Inputs of every pass in eval mode, but for the blank ones that only tell sizes."""
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    found: Seen = Counter()
    forward = AdaptNet.forward

    def counted(self: AdaptNet, inputs: Tensor, layers: Any = ("features",), **values: Any) -> Any:
        if not self.training and inputs.any():
            weights = state_fingerprint(self)
            of_stages = any(layer.startswith("backbone.") for layer in layers)
            for row in inputs:
                digest = hashlib.sha256(row.contiguous().numpy().tobytes()).digest()
                found[weights, digest, of_stages] += 1
        return forward(self, inputs, layers, **values)

    monkeypatch.setattr(AdaptNet, "forward", counted)
    return found


@pytest.fixture
def through_trunk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images of every pass through a backbone, blank ones left out."""
    passed: list[int] = []
    trunk = AdaptNet.trunk

    def counted(self: AdaptNet, images: Tensor, *how: Any) -> Tensor:
        if images.any():
            passed.append(len(images))
        return trunk(self, images, *how)

    monkeypatch.setattr(AdaptNet, "trunk", counted)
    return passed


def run(folder: Path, **values: Any) -> Any:
    trained = finished(folder, method=METHOD, **values)
    with dead_embedder() as embedder:
        report_trained(trained, embedder)
    return trained


def per_model(seen: Seen, *, of_stages: bool) -> list[int]:
    """Number of inputs of each state of each model."""
    counts = Counter(weights for weights, _, stages in seen if stages == of_stages)
    return sorted(counts.values())


def test_a_run_that_trains_everything(tmp_path: Path, seen: Seen) -> None:
    run(tmp_path, epochs=2)
    assert seen.most_common(1)[0][1] == 1
    # Twin and method after the first epoch (24 validation images and the 60 adapted to, for its
    # scores), and as delivered: all images.
    assert per_model(seen, of_stages=False) == [84, 84, 160, 160]
    # Maps of the backbone are not kept for whole splits: the report taps a sample of each model.
    assert per_model(seen, of_stages=True) == [160, 160]


def test_mixed_precision_passes_no_image_again(tmp_path: Path, seen: Seen) -> None:
    run(tmp_path, amp=True)
    assert seen.most_common(1)[0][1] == 1
    assert per_model(seen, of_stages=False) == [160, 160]


def test_a_frozen_run(tmp_path: Path, seen: Seen, through_trunk: list[int]) -> None:
    values = {**FROZEN, "pretrained_path": str(backbone_weights(tmp_path))}
    trained = run(tmp_path, **values)
    assert trained.twin.held_out.folds > 1
    assert seen.most_common(1)[0][1] == 1
    # All images for the cache, and the sample whose stages the report shows.
    assert sum(through_trunk) == 160 + 160
    through_trunk.clear()
    seen.clear()
    again = run(tmp_path, **values, out=str(tmp_path / "again"))
    assert through_trunk == []
    assert seen.most_common(1)[0][1] == 1
    assert torch.equal(again.twin.net.head.weight, trained.twin.net.head.weight)


def test_a_run_that_is_measured_again(tmp_path: Path, seen: Seen) -> None:
    folder = run(tmp_path).folder
    seen.clear()
    restore(folder, SilentReporter(), device="cpu", workers=1)
    assert seen.most_common(1)[0][1] == 1
    assert per_model(seen, of_stages=False) == [160, 160]
