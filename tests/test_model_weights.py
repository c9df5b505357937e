"""Local weights and ready classifiers: what is loaded, and what is refused and why."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from daptkit.errors import DataError, UsageError
from daptkit.model import (
    AdaptNet,
    init_from,
    load_backbone_weights,
    save_model_folder,
)
from daptkit.model.files import read_state_dict
from tiny_nets import tiny_net


def classifier(name: str = "test_resnet", **kwargs: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = timm.create_model(name, **kwargs).state_dict()
    return state


def backbone_equals(net: AdaptNet, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, state[k]) for k, v in net.backbone.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "backbone.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_every_usual_wrapping_loads(tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    state = classifier()
    content: Any = {prefix + k: v for k, v in state.items()}
    if wrapper:
        content = {wrapper: content, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    net = tiny_net()
    report = load_backbone_weights(net, path)
    assert backbone_equals(net, state)
    assert report.matched == report.total == sum("tracked" not in k for k in state) - 2
    assert report.missing == () and report.unexpected == ("fc.bias", "fc.weight")
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    state = classifier()
    torch.save(
        {"state_dict": {k: v + 1 for k, v in state.items()}, "state_dict_ema": state},
        tmp_path / "w.pth",
    )
    net = tiny_net()
    load_backbone_weights(net, tmp_path / "w.pth")
    assert backbone_equals(net, state)


def test_safetensors_load_whatever_their_extension(tmp_path: Path) -> None:
    state = classifier()
    save_file(state, tmp_path / "weights.bin")
    net = tiny_net()
    load_backbone_weights(net, tmp_path / "weights.bin")
    assert backbone_equals(net, state)


def test_one_channel_gets_the_sum_of_the_colour_filters(tmp_path: Path) -> None:
    state = classifier("test_vit", img_size=32)
    save_file(state, tmp_path / "w.safetensors")
    net = tiny_net("test_vit", in_chans=1)
    report = load_backbone_weights(net, tmp_path / "w.safetensors")
    loaded = net.backbone.state_dict()["patch_embed.proj.weight"]
    assert torch.allclose(loaded, state["patch_embed.proj.weight"].sum(1, keepdim=True))
    assert report.matched == report.total
    grey, colour = torch.rand(2, 1, 32, 32), tiny_net("test_vit")
    load_backbone_weights(colour, tmp_path / "w.safetensors")
    once = net.eval().backbone(grey)
    assert torch.allclose(once, colour.eval().backbone(grey.expand(-1, 3, -1, -1)), atol=1e-5)


def test_position_codes_of_another_image_size_are_resized_not_left_random(tmp_path: Path) -> None:
    state = classifier("test_vit", img_size=64)
    save_file(state, tmp_path / "w.safetensors")
    net = tiny_net("test_vit", img_size=32)
    report = load_backbone_weights(net, tmp_path / "w.safetensors")
    assert report.matched == report.total
    theirs, ours = state["pos_embed"], net.backbone.state_dict()["pos_embed"]
    assert ours.shape[1] < theirs.shape[1]
    assert torch.allclose(ours[:, 0], theirs[:, 0]), "the class token keeps its code"


def test_few_missing_tensors_are_reported_and_many_are_refused(tmp_path: Path) -> None:
    state = classifier()
    names = [k for k in state if "tracked" not in k and not k.startswith("fc.")]
    part = {k: v for k, v in state.items() if k != names[-1]}
    save_file(part, tmp_path / "w.safetensors")
    report = load_backbone_weights(tiny_net(), tmp_path / "w.safetensors")
    assert report.missing == (names[-1],) and report.matched == report.total - 1
    few = {k: state[k] for k in names[: int(len(names) * 0.85)]}
    save_file(few, tmp_path / "w.safetensors")
    net = tiny_net()
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    with pytest.raises(DataError, match=rf"only {len(few)} of the {len(names)} .*Missing: "):
        load_backbone_weights(net, tmp_path / "w.safetensors")
    assert backbone_equals(net, before), "a refused file changes nothing"


def test_counters_of_batch_normalisation_may_be_missing(tmp_path: Path) -> None:
    state = {k: v for k, v in classifier().items() if "tracked" not in k}
    save_file(state, tmp_path / "w.safetensors")
    report = load_backbone_weights(tiny_net(), tmp_path / "w.safetensors")
    assert report.matched == report.total


def test_another_architecture_is_refused_with_examples(tmp_path: Path) -> None:
    torch.save(classifier("test_efficientnet"), tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"only 0 of .*In the file: .*--model") as caught:
        load_backbone_weights(tiny_net(), tmp_path / "w.pth")
    assert caught.value.exit_code == 3
    torch.save(classifier("mobilenetv2_050"), tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"Other shape: \S+ [\dx]+ instead of [\dx]+"):
        load_backbone_weights(tiny_net("mobilenetv2_035"), tmp_path / "w.pth")


class Bomb:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.flag,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    flag = tmp_path / "owned"
    torch.save({"state_dict": classifier(), "x": Bomb(flag)}, tmp_path / "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"x": Bomb(flag)}))
    for name in ("zip.pth", "raw.pth"):
        with pytest.raises(DataError, match=name):
            load_backbone_weights(tiny_net(), tmp_path / name)
    with pytest.raises(DataError, match="could run code"):
        load_backbone_weights(tiny_net(), tmp_path / "zip.pth")
    assert not flag.exists()


def test_a_trusted_file_may_carry_objects(tmp_path: Path) -> None:
    flag = tmp_path / "run"
    torch.save({"state_dict": classifier(), "x": Bomb(flag)}, tmp_path / "objects.pth")
    report = load_backbone_weights(tiny_net(), tmp_path / "objects.pth", trust=True)
    assert flag.exists()
    assert report.matched == report.total
    net = tiny_net()
    torch.save(net.backbone, tmp_path / "module.pth")
    with pytest.raises(DataError, match=r"--trust if you trust its origin"):
        load_backbone_weights(tiny_net(), tmp_path / "module.pth")
    again = tiny_net()
    load_backbone_weights(again, tmp_path / "module.pth", trust=True)
    for name, value in net.backbone.state_dict().items():
        assert torch.equal(value, again.backbone.state_dict()[name]), name


def test_trust_changes_nothing_for_plain_tensors_and_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(classifier(), tmp_path / "w.pth")
    asked: list[bool] = []
    load = torch.load

    def spy(*arguments: Any, weights_only: bool, **options: Any) -> Any:
        asked.append(weights_only)
        return load(*arguments, weights_only=weights_only, **options)

    monkeypatch.setattr(torch, "load", spy)
    load_backbone_weights(tiny_net(), tmp_path / "w.pth", trust=True)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:5000])
    with pytest.raises(DataError, match="probably truncated, damaged"):
        load_backbone_weights(tiny_net(), tmp_path / "cut.pth", trust=True)
    assert set(asked) == {True}


class Quarrelsome:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return dict.__getitem__, ({}, "gone")


def test_objects_that_cannot_be_loaded_are_one_line(tmp_path: Path) -> None:
    torch.save({"state_dict": classifier(), "x": Quarrelsome()}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"failed \(KeyError: 'gone'\)\. A package"):
        load_backbone_weights(tiny_net(), tmp_path / "w.pth", trust=True)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_torchscript_archive_carries_code(tmp_path: Path) -> None:
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    torch.jit.save(torch.jit.script(Small()), tmp_path / "w.pt")
    with pytest.raises(DataError, match="could run code when loaded"):
        read_state_dict(tmp_path / "w.pt")
    assert list(read_state_dict(tmp_path / "w.pt", trust=True)) == ["weight"]


def test_torch_files_need_trust_under_a_torch_that_could_run_their_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(classifier(), tmp_path / "w.pth")
    save_file(classifier(), tmp_path / "w.safetensors")
    for version, refused in (("2.9.1+cu128", True), ("2.10.0", False), ("2.14.0+cpu", False)):
        monkeypatch.setattr(torch, "__version__", version)
        load_backbone_weights(tiny_net(), tmp_path / "w.safetensors")
        load_backbone_weights(tiny_net(), tmp_path / "w.pth", trust=True)
        if refused:
            with pytest.raises(DataError, match=r"Update torch to 2\.10 or newer.*--trust"):
                load_backbone_weights(tiny_net(), tmp_path / "w.pth")
        else:
            load_backbone_weights(tiny_net(), tmp_path / "w.pth")


def damaged_files(folder: Path) -> dict[str, Path]:
    save_file(classifier(), folder / "whole.safetensors")
    torch.save(classifier(), folder / "whole.pth")
    contents = {
        "empty": b"",
        "page": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "text": b"these are not weights\n" * 9,
        "noise": bytes(range(256)) * 9,
        "short_safetensors": (folder / "whole.safetensors").read_bytes()[:5000],
        "short_torch": (folder / "whole.pth").read_bytes()[:5000],
        "three_bytes": b"PK\x03",
        "numbers": pickle.dumps([1, 2, 3], protocol=2),
        "no_tensors": pickle.dumps({"epoch": 3}, protocol=2),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents}


def test_files_that_hold_no_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    files = damaged_files(tmp_path)
    files |= {"absent": tmp_path / "absent", "folder": tmp_path}
    reasons = {
        "empty": "is empty",
        "page": "web page",
        "pointer": "Git LFS",
        "absent": "not found",
        "folder": "is a folder",
        "short_safetensors": "truncated",
        "short_torch": "truncated",
    }
    net = tiny_net()
    for name, path in files.items():
        with pytest.raises(DataError) as caught:
            load_backbone_weights(net, path)
        message = str(caught.value)
        assert str(path) in message and "\n" not in message, name
        assert reasons.get(name, "weights file") in message, (name, message)


def flips(content: bytes, places: Iterable[int]) -> Iterator[bytes]:
    for place in places:
        yield content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def test_no_flipped_bit_of_a_torch_file_goes_unseen(tmp_path: Path) -> None:
    state = {"fc.weight": torch.rand(3, 4), "fc.bias": torch.rand(3)}
    path = tmp_path / "w.pth"
    torch.save(state, path)
    whole = path.read_bytes()
    values = whole.index(state["fc.weight"].numpy().tobytes())
    places = [*range(0, len(whole), 11), *range(values, values + 9)]
    refused = 0
    for content in flips(whole, places):
        path.write_bytes(content)
        try:
            loaded = read_state_dict(path, trust=True)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
        else:  # in the padding or in a date
            assert loaded.keys() == state.keys()
            assert all(torch.equal(loaded[k], v) for k, v in state.items())
    assert refused > len(places) // 2


def test_torch_files_without_check_sums_load(tmp_path: Path) -> None:
    state = classifier()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "without.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("without.pth", "old.pth"):
        net = tiny_net()
        load_backbone_weights(net, tmp_path / name)
        assert backbone_equals(net, state), name


def test_a_flipped_bit_in_the_header_of_safetensors_loses_a_name_at_most(tmp_path: Path) -> None:
    state = {"fc.weight": torch.rand(3, 4), "fc.bias": torch.rand(3)}
    path = tmp_path / "w.safetensors"
    save_file(state, path)
    whole = path.read_bytes()
    for content in flips(whole, range(int.from_bytes(whole[:8], "little") + 8)):
        path.write_bytes(content)
        try:
            loaded = read_state_dict(path)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            same = [k for k in state if k in loaded]
            assert len(same) == len(state) - 1 == len(loaded) - 1
            assert all(torch.equal(loaded[k], state[k]) for k in same)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = classifier()
    state["conv1.0.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"conv1\.0\.weight .*not finite"):
        load_backbone_weights(tiny_net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "daptkit_lenet"])
def test_init_from_a_state_dict_predicts_as_the_classifier_did(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 32} if name in ("test_vit", "daptkit_lenet") else {}
    own = timm.create_model(name, num_classes=4, **size).eval()
    torch.save({"model": {f"module.{k}": v for k, v in own.state_dict().items()}}, tmp_path / "w")
    net, config, classes, report = init_from(
        tmp_path / "w",
        classes=("a", "b", "c", "d"),
        name=name,
        img_size=32,
        mean=(0.0,),
        std=(1.0,),
    )
    images = torch.rand(2, config.in_chans, 32, 32)
    assert torch.allclose(net.eval()(images)[0], own(images), atol=1e-6)
    assert classes == ("a", "b", "c", "d") and config.bottleneck == 0
    assert report.matched == report.total and report.unexpected == ()


def test_init_from_a_state_dict_needs_matching_classes(tmp_path: Path) -> None:
    torch.save(classifier(num_classes=4), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="--classes"):
        init_from(tmp_path / "w.pth", name="test_resnet")
    with pytest.raises(DataError, match="4 outputs, and --classes names 2"):
        init_from(tmp_path / "w.pth", classes=("a", "b"), name="test_resnet", img_size=32)
    torch.save(classifier(num_classes=0), tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"no head fc\.weight"):
        init_from(tmp_path / "w.pth", classes=("a", "b"), name="test_resnet", img_size=32)
    torch.save(classifier("resnet18", num_classes=2), tmp_path / "w.pth")
    with pytest.raises(DataError, match="--model"):
        init_from(tmp_path / "w.pth", classes=("a", "b"), name="test_resnet", img_size=32)


def test_init_from_a_model_folder_brings_everything(tmp_path: Path) -> None:
    own = tiny_net("daptkit_lenet", img_size=28).eval()
    folder = tmp_path / "run" / "model"
    save_model_folder(
        folder, own, own.config, classes=("x", "y", "z"), conversion={"a": 1}, rule={}
    )
    images = torch.rand(2, 1, 28, 28)
    for path in (folder, folder.parent, folder / "model.safetensors"):
        net, config, classes, report = init_from(path, name="resnet18", dropout=0.3)
        assert torch.equal(net.eval()(images)[0], own(images)[0])
        assert classes == ("x", "y", "z") and config.name == "daptkit_lenet"
        assert config.dropout == net.dropout.p == 0.3
        assert report.matched == report.total == 6
    with pytest.raises(UsageError, match="differs from the classes"):
        init_from(folder, classes=("x", "y"))
    with pytest.raises(DataError, match="not a model folder"):
        init_from(tmp_path)
    with pytest.raises(DataError, match="not found"):
        init_from(tmp_path / "nowhere")


def test_real_weights_load_completely(shared_data: Path) -> None:
    path = shared_data / "weights" / "mobilenetv2_100.pth"
    if not path.is_file():
        pytest.skip("no real weights")
    net = tiny_net(
        "mobilenetv2_100", kwargs=("pad_type=same",), mean=(0.5,), std=(0.5,), img_size=64
    )
    report = load_backbone_weights(net, path)
    assert report.matched == report.total == 260 and report.missing == ()
    assert report.unexpected == ("classifier.bias", "classifier.weight")
    own: Any = timm.create_model(
        "mobilenetv2_100",
        pad_type="same",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
    )
    images = torch.rand(2, 3, 64, 64)
    own.eval()
    pooled = own.forward_head(own.forward_features(images * 2 - 1), pre_logits=True)
    assert torch.allclose(net.eval().trunk(images), pooled, atol=1e-4)
