"""The order of a backbone's layers."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from daptkit.model import Stage, backbone_stages, modules_above


@pytest.mark.parametrize(
    ("name", "coarse", "first", "last"),
    [
        ("resnet18", 5, "conv1+bn1", "layer4"),
        ("mobilenetv2_100", 8, "conv_stem+bn1", "blocks.6+conv_head+bn2"),
        ("convnext_atto", 6, "stem", "head"),
        ("vit_tiny_patch16_224", 13, "cls_token+pos_embed+patch_embed", "blocks.11+norm"),
        ("daptkit_lenet", 3, "conv1", "fc1"),
    ],
)
def test_stages_of_cnns_and_transformers(name: str, coarse: int, first: str, last: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0)
    stages = backbone_stages(net, coarse=True)
    assert (len(stages), stages[0].name, stages[-1].name) == (coarse, first, last)
    for size in (True, False):
        names = [n for stage in backbone_stages(net, coarse=size) for n in stage.parameters]
        assert sorted(names) == sorted(n for n, _ in net.named_parameters())
    assert len(backbone_stages(net, coarse=False)) >= coarse


def test_without_a_matcher_the_children_are_the_stages() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2))

    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.upper, self.top = nn.Linear(2, 2), nn.Linear(2, 2)
            self.code = nn.Parameter(torch.zeros(2))

    assert backbone_stages(Wrapped(), coarse=True) == (
        Stage("body.0", ("body.0.weight", "body.0.bias")),
        Stage("body.2", ("body.2.weight", "body.2.bias")),
    )
    assert [stage.parameters for stage in backbone_stages(Coded(), coarse=True)] == [
        ("code", "upper.weight", "upper.bias"),
        ("top.weight", "top.bias"),
    ]
    assert len(backbone_stages(nn.Linear(2, 2), coarse=True)) == 1


def test_modules_are_trained_when_everything_in_them_is() -> None:
    net = timm.create_model("test_resnet", num_classes=0)
    stages = backbone_stages(net, coarse=True)
    above = modules_above(net, frozenset(stages[-1].parameters))
    assert {"layer4", "layer4.0.bn1", "layer4.0.act1"} <= above
    assert not {"", "act1", "layer3", "layer3.0.bn1", "conv1"} & above
    everything = frozenset(name for name, _ in net.named_parameters())
    assert modules_above(net, everything) == {name for name, _ in net.named_modules()}
    assert modules_above(net, frozenset()) == frozenset()
