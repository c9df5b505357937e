"""Model configuration, model arguments and the small network for digits."""

from __future__ import annotations

import json
from typing import Any

import pytest
import timm
import torch
from torch import nn

from daptkit.errors import DataError, UsageError
from daptkit.model import LeNet, ModelConfig, parse_model_kwargs
from tiny_nets import tiny_config


def resolve(name: str, **changes: Any) -> ModelConfig:
    return tiny_config(name, **{"img_size": None, **changes})


def test_lenet_is_known_to_timm_and_follows_its_layers() -> None:
    torch.manual_seed(0)
    net = timm.create_model("daptkit_lenet", num_classes=10).eval()
    assert isinstance(net, LeNet)
    images = torch.rand(2, 1, 28, 28)
    expected = net.fc(
        torch.relu(
            net.fc1(
                nn.Sequential(
                    net.conv1, nn.MaxPool2d(2), nn.ReLU(), net.conv2, nn.MaxPool2d(2), nn.ReLU()
                )(images).flatten(1)
            )
        )
    )
    assert torch.allclose(net(images), expected)
    assert net.conv1.weight.shape == (20, 1, 5, 5)
    assert net.conv2.weight.shape == (50, 20, 5, 5)
    assert net.fc1.weight.shape == (500, 50 * 4 * 4)
    assert net.get_classifier() is net.fc


@pytest.mark.parametrize("size", [16, 17, 28, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_lenet_pools_any_size_to_500_features(size: int, channels: int) -> None:
    net: Any = timm.create_model("daptkit_lenet", num_classes=0, img_size=size, in_chans=channels)
    assert net(torch.rand(2, channels, size, size)).shape == (2, 500)
    net.reset_classifier(4)
    assert net(torch.rand(2, channels, size, size)).shape == (2, 4)


def test_lenet_dropout_acts_in_training_only() -> None:
    net = timm.create_model("daptkit_lenet", num_classes=0, drop_rate=0.5)
    images = torch.rand(4, 1, 28, 28)
    assert not torch.equal(net.train()(images), net(images))
    assert torch.equal(net.eval()(images), net(images))


def test_lenet_groups_every_parameter() -> None:
    from timm.models import group_parameters

    net: Any = timm.create_model("daptkit_lenet")
    named = {n for names in group_parameters(net, net.group_matcher()).values() for n in names}
    assert named == {name for name, _ in net.named_parameters()}


def test_defaults_are_the_models_own() -> None:
    lenet = resolve("daptkit_lenet")
    assert (lenet.img_size, lenet.in_chans, lenet.mean, lenet.std) == (28, 1, (0.5,), (0.5,))
    vit = resolve("test_vit")
    assert (vit.img_size, vit.in_chans, vit.mean) == (160, 3, (0.5, 0.5, 0.5))
    resnet = resolve("resnet18.a1_in1k")
    assert (resnet.img_size, resnet.mean) == (224, (0.485, 0.456, 0.406))


def test_mean_and_std_are_spread_or_averaged_over_the_channels() -> None:
    assert resolve("resnet18", mean=(0.4,), std=(0.2,)).mean == (0.4, 0.4, 0.4)
    assert resolve("resnet18", in_chans=1).mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,))
    assert resolve("resnet18", in_chans=2, std=(0.1, 0.3)).std == (0.1, 0.3)
    for wrong in ({"mean": (0.1, 0.2)}, {"std": (0.0,)}, {"std": (0.1, -1.0, 0.1)}):
        with pytest.raises(UsageError, match=r"--mean|--std"):
            resolve("resnet18", **wrong)


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean 'daptkit_lenet'"):
        resolve("daptkit_lenets")
    with pytest.raises(UsageError, match="Did you mean 'my_backbone'"):
        resolve("my_backbon", factories={"my_backbone": nn.Identity})
    with pytest.raises(UsageError, match="a1_in1k"):
        resolve("resnet18.nonsense")


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/x", "timm/resnet18"])
def test_names_that_reach_a_hub_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="--pretrained"):
        resolve(name)


def test_model_kwargs_keep_their_types() -> None:
    items = ("a=1", "b=0.5", "c=true", "d=False", "e=same", "f=[2,2]", "g='x'", "h=a=b", "i={}")
    values = [1, 0.5, True, False, "same", [2, 2], "x", "a=b", "{}"]
    assert parse_model_kwargs(items) == dict(zip("abcdefghi", values, strict=True))
    assert type(parse_model_kwargs(("a=1",))["a"]) is int


@pytest.mark.parametrize("items", [("pad_type",), ("=1",), ("a b=1",), ("a=1", "a=2")])
def test_malformed_model_kwargs_are_refused(items: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="--model-kwargs"):
        parse_model_kwargs(items)


@pytest.mark.parametrize("key", ["checkpoint_path", "num_classes", "pretrained_cfg", "img_size"])
def test_model_kwargs_cannot_reach_behind_the_options(key: str) -> None:
    with pytest.raises(UsageError, match=f"cannot set '{key}'"):
        resolve("resnet18", kwargs=(f"{key}=x",))


def test_config_survives_json_and_refuses_other_fields() -> None:
    config = resolve("mobilenetv2_035", kwargs=("pad_type=same", "drop_rate=0.1"), in_chans=2)
    values = json.loads(json.dumps(config.to_json()))
    assert ModelConfig.from_json(values) == config
    with pytest.raises(DataError, match="depth"):
        ModelConfig.from_json({**values, "depth": 3})
    with pytest.raises(DataError, match="not readable"):
        ModelConfig.from_json({**values, "img_size": "wide"})
