"""Model folders: round trip, damage, requirements, replacement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.errors import DataError, PluginError, UsageError
from daptkit.model import (
    AdaptNet,
    build_model,
    load_model_folder,
    resolve_model_config,
    save_model_folder,
)


def make(name: str = "test_resnet", seed: int = 0) -> AdaptNet:
    config = resolve_model_config(
        name, {}, 32, 1, (0.4,), (0.3,), num_classes=3, bottleneck=8, dropout=0.1
    )
    torch.manual_seed(seed)
    return build_model(config)


def save(folder: Path, net: AdaptNet, **extra: Any) -> None:
    save_model_folder(
        folder,
        net,
        net.config,
        classes=("normal", "pneumonia", "Ödem"),
        conversion={"img_size": 32, "windows": {"int": [0.0, 4095.0]}},
        rule={"source_prior": [0.2, 0.3, 0.5], "target_prior": None},
        extra=extra,
    )


def test_a_saved_model_predicts_as_before(tmp_path: Path) -> None:
    net = make()
    net(torch.rand(4, 1, 32, 32))  # moves the running statistics
    save(tmp_path / "run" / "model", net, pretrained_sha256="ab", epochs=3)
    loaded = load_model_folder(tmp_path / "run" / "model")
    images = torch.rand(3, 1, 32, 32)
    assert torch.equal(loaded.net(images)[0], net.eval()(images)[0])
    assert not loaded.net.training
    assert loaded.config == net.config
    assert loaded.classes == ("normal", "pneumonia", "Ödem")
    assert loaded.conversion == {"img_size": 32, "windows": {"int": [0.0, 4095.0]}}
    assert loaded.rule == {"source_prior": [0.2, 0.3, 0.5], "target_prior": None}
    assert (loaded.meta["pretrained_sha256"], loaded.meta["epochs"]) == ("ab", 3)
    names = {p.name for p in (tmp_path / "run").rglob("*")}
    assert names == {"model", "model.json", "model.safetensors"}


def test_loading_does_not_draw_from_the_callers_generator(tmp_path: Path) -> None:
    save(tmp_path / "model", make())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model_folder(tmp_path / "model")
    assert torch.equal(torch.rand(3), expected)


def test_loading_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "model", make())
    monkeypatch.setattr("timm.models._builder.load_pretrained", None)
    load_model_folder(tmp_path / "model")


def test_an_older_model_is_replaced_and_other_folders_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path / "model", make())
    other = make(seed=1)
    save(tmp_path / "model", other)
    loaded = load_model_folder(tmp_path / "model").net
    assert torch.equal(loaded.head.weight, other.head.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="photos is not a model folder"):
        save(tmp_path / "photos", other)
    assert (tmp_path / "photos" / "cat.png").exists()


def test_a_failed_save_keeps_the_older_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    save(tmp_path / "model", first)
    with pytest.raises(ValueError, match="JSON compliant"):
        save(tmp_path / "model", make(seed=1), score=float("nan"))
    with pytest.raises(ValueError, match="classes"):
        save(tmp_path / "model", make(seed=1), classes=["a"])
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert torch.equal(load_model_folder(tmp_path / "model").net.head.weight, first.head.weight)


def damage(folder: Path, fault: str) -> None:
    weights, meta = folder / "model.safetensors", folder / "model.json"
    content = bytearray(weights.read_bytes())
    values = json.loads(meta.read_text(encoding="utf-8"))
    if fault == "truncated":
        weights.write_bytes(content[:-10])
    elif fault == "flipped":
        content[-3] ^= 4
        weights.write_bytes(content)
    elif fault == "no weights":
        weights.unlink()
    elif fault == "no meta":
        meta.unlink()
    elif fault == "half meta":
        meta.write_text(meta.read_text(encoding="utf-8")[:200])
    elif fault == "html meta":
        meta.write_text("<html>")
    elif fault == "list meta":
        meta.write_text("[]")
    elif fault == "newer":
        meta.write_text(json.dumps({**values, "format": 99}))
    elif fault == "edited":
        values["rule"]["source_prior"] = [0.5, 0.3, 0.2]
        meta.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("truncated", "bytes instead of"),
        ("flipped", "sha256 differs"),
        ("no weights", r"model\.safetensors is missing"),
        ("no meta", "not a model folder"),
        ("half meta", "not readable"),
        ("html meta", "not readable"),
        ("list meta", "not a model description"),
        ("newer", "Update daptkit"),
        ("edited", "altered or damaged"),
    ],
)
def test_damage_is_found_and_named(tmp_path: Path, fault: str, reason: str) -> None:
    save(tmp_path / "model", make())
    damage(tmp_path / "model", fault)
    with pytest.raises(DataError, match=reason) as caught:
        load_model_folder(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    save(tmp_path / "model", make(), requires=["torch", "daptkit-not-there"])
    with pytest.raises(PluginError, match="pip install daptkit-not-there"):
        load_model_folder(tmp_path / "model")
    save(tmp_path / "model", make(), requires=["torch"])
    assert load_model_folder(tmp_path / "model").meta["requires"] == ["torch"]


def test_a_network_that_cannot_be_built_here_is_the_folders_fault(tmp_path: Path) -> None:
    net = make()
    config = replace(net.config, name="backbone_of_a_plugin")
    save_model_folder(
        tmp_path / "model", net, config, classes=("a", "b", "c"), conversion={}, rule={}
    )
    with pytest.raises(DataError, match=r"cannot build .*'backbone_of_a_plugin'"):
        load_model_folder(tmp_path / "model")


def test_classes_and_head_agree(tmp_path: Path) -> None:
    net = make()
    save_model_folder(
        tmp_path / "model", net, net.config, classes=("a", "b"), conversion={}, rule={}
    )
    with pytest.raises(DataError, match="differ in number"):
        load_model_folder(tmp_path / "model")
