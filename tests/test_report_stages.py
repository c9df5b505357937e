"""Divergence per stage of the network."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from daptkit.data import to_float
from daptkit.model import AdaptNet, build_model, resolve_model_config
from daptkit.report.stage_cache import Distances, kept_distances
from daptkit.report.stages import Stage, channel_statistics, stage_divergences, stage_layers
from daptkit.shift import mmd2, proxy_a_distance
from daptkit.train.adaptation import Trained
from report_runs import backbone_weights, finished


def network(name: str, size: int, factory: Any = None, bottleneck: int = 8) -> AdaptNet:
    factories = {} if factory is None else {name: factory}
    config = resolve_model_config(
        name,
        (),
        img_size=size,
        in_chans=1,
        mean=(0.5,),
        std=(0.5,),
        num_classes=3,
        bottleneck=bottleneck,
        dropout=0.0,
        factories=factories,
    )
    return build_model(config, factories=factories)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return finished(tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize(
    ("name", "size", "labels", "channels"),
    [
        ("daptkit_lenet", 16, ["conv1", "conv2", "fc1"], [20, 50, 500]),
        ("resnet18", 32, ["act1", "layer1", "layer2", "layer3", "layer4"], [64, 64, 128, 256, 512]),
        (
            "mobilenetv2_050",
            32,
            ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"],
            [8, 16, 16, 48, 160],
        ),
        ("convnext_atto", 32, [f"stages.{i}" for i in range(4)], [40, 80, 160, 320]),
        ("vit_tiny_patch16_224", 32, [f"blocks.{i}" for i in (0, 3, 6, 8, 11)], [192] * 5),
    ],
)
def test_stages_of_networks(name: str, size: int, labels: list[str], channels: list[int]) -> None:
    net = network(name, size)
    stages = stage_layers(net)
    assert [s.label for s in stages] == [*labels, "features (bottleneck)", "logits"]
    _, taps = net(torch.rand(2, 1, size, size), tuple(s.tap for s in stages))
    widths = [channel_statistics(taps[s.tap], s.channels).shape[1] for s in stages[:-2]]
    # LeNet's fc1 has no places: its values are taken as they are.
    assert widths == [
        c if s.label == "fc1" else 2 * c for c, s in zip(channels, stages[:-2], strict=True)
    ]


class Odd(nn.Module):
    """A plugin's backbone whose parts return a tuple, are not called, or put images last."""

    num_features = 4

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.body = nn.ModuleDict(
            {
                "plain": nn.Conv2d(in_chans, 4, 3),
                "pair": Pair(),
                "unused": nn.Linear(2, 2),
                "turned": Turned(),
                "free": nn.ReLU(),
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        maps, _ = self.body["pair"](self.body["plain"](images))
        return self.body["free"](self.body["turned"](maps).permute(3, 2, 1, 0).mean(dim=(2, 3)))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.scale, x


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).permute(3, 2, 1, 0)


def test_stages_that_are_not_one_tensor_a_batch_are_left_out() -> None:
    net = network("odd", 16, Odd, bottleneck=0)
    assert stage_layers(net) == [
        Stage("body.plain", "backbone.body.plain"),
        Stage("features", "features"),
        Stage("logits", "logits"),
    ]


class Bare(nn.Module):
    num_features = 4

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(1, 2, 3), keepdim=True)[:, :, 0, 0] * self.weight


def test_a_network_without_stages_says_so(run: Trained) -> None:
    bare = replace(run, twin=replace(run.twin, net=network("bare", 16, Bare)))
    assert stage_divergences(bare) == {
        "layers": [],
        "note": "No stage of this network returns one tensor of features.",
    }


@pytest.mark.parametrize(
    ("shape", "channels", "last"),
    [
        ((2, 3, 4, 5), None, False),
        ((2, 3, 4, 5), 3, False),
        ((2, 4, 5, 3), 3, True),
        ((2, 7, 3), None, True),
        ((2, 3, 7), 3, False),
        ((2, 3, 3), 3, True),
        ((2, 7, 3), 11, True),
    ],
)
def test_channel_statistics_against_loops(
    shape: tuple[int, ...], channels: int | None, last: bool
) -> None:
    tap = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = channel_statistics(tap, channels)
    c = shape[-1] if last else shape[1]
    for n in range(shape[0]):
        for k in range(c):
            values = (tap[n, ..., k] if last else tap[n, k]).flatten().tolist()
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
            assert float(found[n, k]) == pytest.approx(mean)
            assert float(found[n, c + k]) == pytest.approx(spread)
    assert found.shape == (shape[0], 2 * c)


def test_vectors_stay_as_they_are() -> None:
    x = torch.randn(3, 4)
    assert channel_statistics(x) is x


def test_divergences_against_a_pass_of_all_images_at_once(run: Trained) -> None:
    found = stage_divergences(run)
    assert found["layers"] == ["conv1", "conv2", "fc1", "features (bottleneck)", "logits"]
    assert found["shown"] == {"source": 100, "target": 60}
    assert found["note"] is None
    data = run.prepared.data
    for name, model in (("source-only", run.twin), ("adapted", run.adapted)):
        assert model is not None
        maps: dict[str, list[Tensor]] = {"conv2": [], "logits": []}
        hook = model.net.backbone.conv2.register_forward_hook(
            lambda module, given, out, kept=maps["conv2"]: kept.append(out)
        )
        for domain in (data.source, data.target):
            with torch.no_grad():
                images = to_float(domain.images.batch(np.arange(len(domain))))
                maps["logits"].append(model.net(images)[0])
        hook.remove()
        groups = {"source_groups": data.source.groups, "target_groups": data.target.groups}
        flat = [
            torch.cat([m.mean((2, 3)), m.std((2, 3), correction=0)], 1).double().numpy()
            for m in maps["conv2"]
        ]
        expected = proxy_a_distance(*flat, **groups, seed=0)
        assert found["proxy_a_distance"][name][1] == pytest.approx(expected, abs=0.02)
        assert found["mmd2"][name][1] == pytest.approx(mmd2(*flat), abs=1e-4)
        logits = [m.double().numpy() for m in maps["logits"]]
        assert found["mmd2"][name][-1] == pytest.approx(mmd2(*logits), abs=1e-4)
    assert found["mmd2"]["source-only"] != found["mmd2"]["adapted"]


def test_values_that_are_not_finite_are_left_out(
    run: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(tap: Tensor, channels: int | None) -> Tensor:
        return tap.flatten(1) * (math.inf if channels is None and tap.ndim == 4 else 1.0)

    monkeypatch.setattr("daptkit.report.stages.channel_statistics", broken)
    found = stage_divergences(run)
    assert found["mmd2"]["adapted"][:2] == [None, None]
    assert found["proxy_a_distance"]["adapted"][1] is None
    assert found["mmd2"]["adapted"][2] is not None


def test_a_frozen_trunk_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = backbone_weights(tmp_path)
    frozen = finished(tmp_path, finetune="frozen", pretrained_path=str(weights), method="coral")
    seen: list[int] = []
    for model in (frozen.twin, frozen.adapted):
        assert model is not None
        model.net.backbone.conv1.register_forward_hook(lambda m, i, out: seen.append(len(out)))
    found = stage_divergences(frozen)
    assert sum(n for n in seen if n > 2) == 100 + 60  # 1 and 2: blank images that try the taps
    seen.clear()
    assert stage_divergences(frozen) == found
    assert not [n for n in seen if n > 2]
    other = replace(frozen, config=replace(frozen.config, seed=1))
    assert stage_divergences(other)["shown"] == found["shown"]
    assert sum(n for n in seen if n > 2) == 100 + 60
    assert found["layers"][:3] == ["conv1", "conv2", "fc1"]
    before, after = found["mmd2"]["source-only"], found["mmd2"]["adapted"]
    assert before[:3] == after[:3]
    assert before[3:] != after[3:]
    assert "frozen" in found["note"]


@pytest.mark.parametrize("content", ["", "[[1.0]]", "[[1.0, null]]", '[["nan", 0], [0, 0]]', "{}"])
def test_a_damaged_entry_of_the_cache_is_measured_again(
    run: Trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path))
    rows = {"source": np.arange(3), "target": np.arange(4)}
    asked: list[int] = []

    def compute() -> Distances:
        asked.append(1)
        return [(1.5, None), (0.25, -0.01)]

    def kept() -> Distances:
        return kept_distances(run, run.twin, ("backbone.conv1", "backbone.conv2"), rows, compute)

    assert kept() == kept() == [(1.5, None), (0.25, -0.01)]
    assert len(asked) == 1
    (entry,) = (tmp_path / "stages").iterdir()
    entry.write_text(content)
    assert kept() == [(1.5, None), (0.25, -0.01)]
    assert len(asked) == 2


def test_large_maps_are_kept_a_few_at_a_time(run: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stage_divergences(run)
    monkeypatch.setattr("daptkit.report.stages._CHUNK_VALUES", 1)
    seen: list[int] = []
    handle = run.twin.net.backbone.conv1.register_forward_hook(
        lambda module, given, out: seen.append(len(out))
    )
    one_by_one = stage_divergences(run)
    handle.remove()
    assert set(seen) == {1, 2}
    for model in whole["mmd2"]:
        assert one_by_one["mmd2"][model] == pytest.approx(whole["mmd2"][model], abs=1e-4)
