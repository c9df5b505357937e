"""The network: normalisation, taps, frozen backbones, backbones of plugins."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from daptkit.errors import DaptkitError, PluginError, UsageError
from daptkit.model import ModelConfig, build_model
from tiny_nets import tiny_net


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("daptkit_lenet", None),
        ("test_resnet", None),
        ("test_resnet", 1),
        ("test_vit", None),
        ("test_vit", 2),
        ("test_efficientnet", None),
        ("mobilenetv3_small_050", 1),
    ],
)
def test_any_timm_model_gives_logits_features_and_trunk(name: str, channels: int | None) -> None:
    net = tiny_net(name, in_chans=channels).eval()
    images = torch.rand(2, net.config.in_chans, 32, 32)
    logits, taps = net(images, ("features", "trunk"))
    assert set(taps) == {"features", "logits", "trunk"}
    assert taps["logits"] is logits and logits.shape == (2, 3)
    assert taps["features"].shape == (2, 8) and (taps["features"] >= 0).all()
    assert taps["trunk"].shape == (2, net.trunk_dim)
    assert net.dims(("features", "trunk")) == {"features": 8, "logits": 3, "trunk": net.trunk_dim}
    assert torch.allclose(net.trunk(images), taps["trunk"])
    again, _ = net(taps["trunk"], from_trunk=True)
    assert torch.allclose(again, logits)


def test_forward_is_the_stated_formula() -> None:
    net = tiny_net(mean=(0.2, 0.3, 0.4), std=(0.5, 0.6, 0.7)).eval()
    images = torch.rand(2, 3, 32, 32)
    standard = torch.stack(
        [(images[:, c] - m) / s for c, (m, s) in enumerate([(0.2, 0.5), (0.3, 0.6), (0.4, 0.7)])], 1
    )
    linear: Any = net.get_submodule("bottleneck.0")
    features = torch.relu(net.backbone(standard) @ linear.weight.T + linear.bias)
    logits = features @ net.head.weight.T + net.head.bias
    assert torch.allclose(net(images)[0], logits, atol=1e-6)


def test_bytes_and_floats_of_one_image_agree() -> None:
    net = tiny_net("daptkit_lenet", img_size=28).eval()
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    assert torch.allclose(net(images)[0], net(images.float() / 255)[0])


def test_without_bottleneck_the_features_are_the_trunk() -> None:
    net = tiny_net("daptkit_lenet", img_size=28, bottleneck=0).eval()
    _, taps = net(torch.rand(2, 1, 28, 28), ("trunk",))
    assert torch.equal(taps["features"], taps["trunk"])
    assert net.dims() == {"features": 500, "logits": 3}
    assert net.head.weight.shape == (3, 500)


def test_dropout_acts_before_the_head_and_not_on_features() -> None:
    net = tiny_net("daptkit_lenet", img_size=28, dropout=0.5, bottleneck=64)
    images = torch.rand(4, 1, 28, 28)
    (one, first), (two, second) = net(images), net(images)
    assert torch.equal(first["features"], second["features"])
    assert not torch.equal(one, two)


def test_one_seed_gives_one_network() -> None:
    for name in ("test_resnet", "test_vit", "daptkit_lenet"):
        first, second = tiny_net(name).state_dict(), tiny_net(name).state_dict()
        assert all(torch.equal(first[k], second[k]) for k in first)


def test_taps_hold_what_the_layer_returned_before_later_layers_overwrite_it() -> None:
    net = tiny_net().eval()
    images = torch.rand(2, 3, 32, 32)
    path = "backbone.layer1.0.bn1"
    inputs: list[Tensor] = []
    layer = net.get_submodule(path)
    conv = net.get_submodule("backbone.layer1.0.conv1")
    handle = conv.register_forward_hook(lambda m, i, o: inputs.append(o.clone()))
    _, taps = net(images, (path, "head"))
    handle.remove()
    expected = layer(inputs[0])
    assert (expected < 0).any(), "an in-place ReLU after the layer would go unnoticed"
    assert torch.allclose(taps[path], expected)
    assert torch.equal(taps["head"], taps["logits"])
    assert net.dims((path,))[path] == expected[0].numel()
    assert not layer._forward_hooks, "hooks are removed"


def test_taps_carry_gradients() -> None:
    net = tiny_net()
    _, taps = net(torch.rand(2, 3, 32, 32), ("backbone.layer1",))
    taps["backbone.layer1"].square().mean().backward()
    weight = net.get_parameter("backbone.conv1.0.weight")
    assert weight.grad is not None and weight.grad.abs().sum() > 0
    assert net.head.weight.grad is None


def test_unknown_layers_are_refused_with_a_suggestion_and_leave_no_hook() -> None:
    net = tiny_net()
    images = torch.rand(2, 3, 32, 32)
    with pytest.raises(UsageError, match=r"Did you mean 'backbone\.layer1'"):
        net(images, ("layer1",))
    with pytest.raises(UsageError, match="Did you mean 'features'"):
        net(images, ("backbone.layer1", "feature"))
    assert not any(m._forward_hooks for m in net.modules())


def test_backbone_layers_cannot_be_read_from_cached_features() -> None:
    net = tiny_net().eval()
    trunk = torch.rand(2, net.trunk_dim)
    _, taps = net(trunk, ("trunk", "bottleneck.0"), from_trunk=True)
    assert torch.equal(taps["trunk"], trunk) and taps["bottleneck.0"].shape == (2, 8)
    with pytest.raises(UsageError, match="cached features"):
        net(trunk, ("backbone.layer1",), from_trunk=True)


def test_frozen_backbone_stays_in_eval_mode_and_its_statistics_do_not_drift() -> None:
    net = tiny_net()
    net.freeze_backbone()
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    net.train()
    assert net.training and net.bottleneck.training
    assert not any(m.training for m in net.backbone.modules())
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    head = net.head.weight.detach().clone()
    for _ in range(3):
        net(5 * torch.rand(4, 3, 32, 32))[0].square().mean().backward()
        optimiser.step()
    after = net.backbone.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not torch.equal(head, net.head.weight)


def test_measuring_sizes_leaves_modes_and_statistics_alone() -> None:
    net = tiny_net()
    net.get_submodule("backbone.layer1").eval()
    modes = [m.training for m in net.modules()]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.dims(("backbone.layer1",))
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_model_arguments_reach_the_model_and_wrong_ones_are_named() -> None:
    net = tiny_net("mobilenetv2_035", kwargs=("pad_type=same",))
    assert type(net.backbone.conv_stem).__name__ == "Conv2dSame"
    with pytest.raises(UsageError, match=r"colour.*--model-kwargs"):
        tiny_net("test_resnet", kwargs=("colour=red",))
    with pytest.raises(UsageError, match="--img-size"):
        tiny_net("daptkit_lenet", img_size=12)


class Plain(nn.Module):
    num_features = 4

    def __init__(self, in_chans: int, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.conv(x).mean((2, 3))
        return pooled


def test_a_plugins_backbone_is_built_and_its_faults_are_named() -> None:
    factories: dict[str, Any] = {
        "plain": Plain,
        "maps": lambda in_chans: nn.Conv2d(in_chans, 4, 3),
        "number": lambda in_chans: 3,
    }
    net = tiny_net("plain", in_chans=2, kwargs={"width": 6}, factories=factories)
    assert net.trunk_dim == 6 and net.config.mean == pytest.approx(
        ((0.485 + 0.456 + 0.406) / 3,) * 2
    )
    with pytest.raises(PluginError, match=r"plain.*height"):
        tiny_net("plain", kwargs={"height": 6}, factories=factories)
    with pytest.raises(PluginError, match=r"maps.*pooled features"):
        tiny_net("maps", factories=factories)
    with pytest.raises(PluginError, match=r"number.*int"):
        tiny_net("number", factories=factories)
    with pytest.raises(UsageError, match="plain is a plugin's model"):
        build_model(net.config, pretrained=True, factories=factories)


def test_pretrained_weights_that_do_not_exist_or_cannot_be_fetched_are_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match="no pretrained weights for daptkit_lenet"):
        build_model(tiny_net("daptkit_lenet").config, pretrained=True)
    config: ModelConfig = tiny_net("test_resnet").config

    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(DaptkitError, match="no route to host") as caught:
        build_model(config, pretrained=True)
    assert caught.value.exit_code == 1


def test_building_needs_no_network_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *a, **k: asked.append(True))
    tiny_net("test_resnet")
    assert not asked
    build_model(tiny_net("test_resnet").config, pretrained=True)
    assert asked


@pytest.mark.parametrize("loaded", [False, True])
def test_convolutions_run_in_channels_last_memory(loaded: bool) -> None:
    """One tensor in the other order would be turned round at every step, without a word."""
    net = tiny_net()
    if loaded:  # as a copy for a run, with the weights of a file
        plain = {name: value.contiguous() for name, value in net.state_dict().items()}
        net = copy.deepcopy(net)
        net.load_state_dict(plain)
    seen: list[torch.Tensor] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, given, out: seen.extend((m.weight, *given, out)))
    net(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8))
    assert len(seen) > 9
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in seen)
