"""Weights, models and checkpoints that cannot be used, as the commands answer them; no hub call."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from daptkit.cli.main import run
from make_sites import CLASSES, make_sites
from test_train_checkpoint import of_format_1

PATIENT = "DOE_JANE_19610203"
SMALL = ("--model", "test_resnet", "--img-size", "32", "--batch-size", "8", "--epochs", "1")
SMALL = (*SMALL, "--device", "cpu", "--no-report")
HEAD = ("--classes", ",".join(CLASSES))
Failing = Callable[..., str]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of two sites whose folder names a patient."""
    folder = tmp_path_factory.mktemp("sites") / PATIENT
    make_sites(folder, n_source=48, n_target=24, size=32)
    return ("--source", str(folder / "source"), "--target", str(folder / "target"))


def classifier(name: str = "test_resnet", classes: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = timm.create_model(name, num_classes=classes).state_dict()
    return state


@pytest.fixture(scope="module")
def trained(sites: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that began with the site's own classifier, wrapped twice."""
    folder = tmp_path_factory.mktemp("trained")
    state = {f"module._orig_mod.{k}": v for k, v in classifier().items()}
    torch.save({"state_dict": state}, folder / "own.pth")
    start = ("--init-from", str(folder / "own.pth"), *HEAD)
    assert run(("adapt", *sites, *SMALL, *start, "--out", str(folder / "run"))) == 0
    return folder / "run"


class Bomb:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.flag,)


def flipped(content: bytes, tensor: Tensor) -> bytes:
    """Flip one bit in the middle of a tensor's values."""
    at = content.index(tensor.numpy().tobytes()) + tensor.nbytes // 2
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def write_bad(fault: str, folder: Path) -> Path:
    """Write a file of weights with a fault and return it."""
    path, state = folder / "bad.weights", classifier()
    torch.save(state, path)
    content = path.read_bytes()
    if fault == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "truncated safetensors":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:-8])
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "web page":
        path.write_text("<!DOCTYPE html><title>Sign in</title>")
    elif fault == "flipped":
        path.write_bytes(flipped(content, state["layer4.0.conv1.weight"]))
    elif fault == "code":
        torch.save({"state_dict": state, "hook": Bomb(folder / "owned")}, path)
    elif fault == "bare pickle with code":
        path.write_bytes(pickle.dumps({"state_dict": Bomb(folder / "owned")}))
    elif fault == "other architecture":
        torch.save(classifier("test_efficientnet"), path)
    elif fault == "other sizes":
        torch.save({k: torch.cat([v, v]) if v.ndim else v for k, v in state.items()}, path)
    elif fault == "no name matches":
        torch.save({f"unknown/{k}": v for k, v in state.items()}, path)
    elif fault == "not finite":
        state["layer4.0.conv1.weight"][0, 0, 0, 0] = float("inf")
        torch.save(state, path)
    else:
        raise AssertionError(fault)
    return path


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("truncated", "probably truncated, damaged"),
        ("truncated safetensors", "probably truncated or damaged"),
        ("empty", "is empty"),
        ("web page", "is a web page, not weights"),
        ("flipped", "damaged or of another kind (Bad CRC-32"),
        ("code", "could run code when loaded"),
        ("bare pickle with code", "could run code when loaded"),
        ("other architecture", "only 0 of the"),
        ("other sizes", "Other shape: "),
        ("no name matches", "only 0 of the"),
        ("not finite", "not finite"),
    ],
)
def test_weights_that_cannot_be_used_end_adapt_with_one_line(
    failing: Failing, sites: tuple[str, ...], tmp_path: Path, fault: str, reason: str
) -> None:
    path, out = write_bad(fault, tmp_path), tmp_path / "run"
    for option in (("--pretrained-path", str(path)), ("--init-from", str(path), *HEAD)):
        if option[0] == "--init-from" and fault in ("other architecture", "no name matches"):
            reason = "has no head fc.weight"
        elif option[0] == "--init-from" and fault == "other sizes":
            reason = "its head has 6 outputs, and --classes names 3 classes"
        said = failing(3, "adapt", *sites, *SMALL, *option, "--out", str(out))
        assert said.startswith(f"daptkit: error: weights file {path}: "), said
        assert reason in said and said.count("\n") == 1
        assert PATIENT not in said
        # The same --out serves the corrected command.
        assert {p.name for p in out.iterdir()} <= {".lock"}
    assert not (tmp_path / "owned").exists()


def test_classes_of_another_task_end_adapt_with_one_line(
    failing: Failing, sites: tuple[str, ...], trained: Path, tmp_path: Path
) -> None:
    torch.save(classifier(), tmp_path / "own.pth")
    own = ("--init-from", str(tmp_path / "own.pth"))
    for code, options, reason in (
        (2, own, "needs --classes"),
        (3, (*own, "--classes", "a,b"), "its head has 3 outputs, and --classes names 2"),
        (3, (*own, "--classes", "normal,benign,cyst"), "does not know: malignant; it knows normal"),
        (2, ("--init-from", str(trained), "--classes", "a,b,c"), "--classes a,b,c differs from"),
    ):
        command = ("adapt", *sites, *SMALL, *options, "--out", str(tmp_path / "run"))
        said = failing(code, *command)
        assert reason in said and said.count("\n") == 1
        assert PATIENT not in said


def test_a_tensor_that_the_file_lacks_is_told(
    sites: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit in the header of safetensors, which has no check sum, renames a tensor."""
    path = tmp_path / "w.safetensors"
    save_file(classifier(), path)
    content = path.read_bytes().replace(b'"layer4.0.conv1.weight"', b'"layer4.0.conv0.weight"')
    path.write_bytes(content)
    command = ("adapt", *sites, *SMALL, "-m", "none", "--pretrained-path", str(path))
    assert run((*command, "--out", str(tmp_path / "run"))) == 0
    said = capsys.readouterr().err
    assert "warning: the weights file lacks 1 of the backbone's" in said
    assert "start from random values: layer4.0.conv1.weight\n" in said


def spoil_model(folder: Path, fault: str, flag: Path) -> None:
    weights, meta = folder / "model.safetensors", folder / "model.json"
    content = weights.read_bytes()
    described = json.loads(meta.read_text(encoding="utf-8"))
    if fault == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif fault == "empty":
        weights.write_bytes(b"")
    elif fault == "web page":
        weights.write_text("<!DOCTYPE html>" + " " * (len(content) - 15))
    elif fault == "flipped":
        weights.write_bytes(flipped(content, load_file(weights)["head.weight"]))
    elif fault == "code":
        weights.write_bytes(pickle.dumps(Bomb(flag)).ljust(len(content), b"."))
    elif fault == "absent":
        weights.unlink()
    elif fault == "other architecture":
        described["architecture"]["name"] = "test_vit"
    elif fault == "other classes":
        described["classes"] = described["classes"][::-1]
    elif fault == "description is a web page":
        meta.write_text("<!DOCTYPE html>")
    else:
        raise AssertionError(fault)
    if fault.startswith("other"):
        meta.write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("truncated", "bytes instead of"),
        ("empty", "has 0 bytes instead of"),
        ("web page", "altered or damaged (sha256 differs)"),
        ("flipped", "altered or damaged (sha256 differs)"),
        ("code", "altered or damaged (sha256 differs)"),
        ("absent", "model.safetensors is missing"),
        ("other architecture", "model.json was altered or damaged"),
        ("other classes", "model.json was altered or damaged"),
        ("description is a web page", "model.json is not readable"),
    ],
)
def test_a_damaged_model_ends_every_command_with_one_line(
    failing: Failing,
    sites: tuple[str, ...],
    trained: Path,
    tmp_path: Path,
    fault: str,
    reason: str,
) -> None:
    model = shutil.copytree(trained / "model", tmp_path / "model")
    spoil_model(model, fault, tmp_path / "owned")
    for command in (
        ("predict", str(model), "--images", sites[3], "--out", str(tmp_path / "p.csv")),
        ("evaluate", str(model), "--data", sites[3]),
        ("adapt", *sites, *SMALL, "--init-from", str(model), "--out", str(tmp_path / "run")),
    ):
        said = failing(3, *command)
        assert str(model) in said and reason in said and said.count("\n") == 1, said
        assert PATIENT not in said
    assert not (tmp_path / "owned").exists() and not (tmp_path / "p.csv").exists()


def test_checkpoints_that_cannot_be_used_end_resume_with_one_line(
    failing: Failing, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))  # else its result is reused
    out = shutil.copytree(trained, tmp_path / "run")
    last = out / "checkpoints" / "last.ckpt"
    (out / "checkpoints" / "previous.ckpt").unlink(missing_ok=True)
    whole = last.read_bytes()
    for content, reason in (
        (whole[:-99], "no checkpoint of the run can be read (last.ckpt damaged)"),
        (b"", "no checkpoint of the run can be read (last.ckpt damaged)"),
        (b"<!DOCTYPE html>", "no checkpoint of the run can be read (last.ckpt damaged)"),
        (whole[:5000] + b"\0" + whole[5001:], "(last.ckpt damaged); start again in a new --out."),
        (of_format_1({"step": 50}), f"'{last}' is a checkpoint of format 1, and this daptkit"),
    ):
        last.write_bytes(content)
        command = ("adapt", "--config", str(out / "run.toml"), "--out", str(out), "--resume")
        said = failing(1, *command)
        assert reason in said and said.count("\n") == 1
        assert last.read_bytes() == content
        assert PATIENT not in said


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of a hub or of the network, all of it refused; also what survives a refusal."""
    requests: list[str] = []

    def refuse(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            requests.append(name)
            raise ConnectionError(f"{name}: there is no network")

        return call

    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            refuse("connect")()
        connect(self, address)

    for name in (
        "huggingface_hub.hf_hub_download",
        "huggingface_hub.model_info",
        "timm.models._hub.hf_hub_download",
        "timm.models._hub.model_info",
        "timm.models._hub.download_url_to_file",
        "timm.models._builder.load_state_dict_from_hf",
        "timm.models._builder.load_custom_from_hf",
        "timm.models._builder.load_state_dict_from_url",
        "timm.models._builder.download_cached_file",
        "torch.hub.download_url_to_file",
        "urllib.request.urlopen",
        "socket.getaddrinfo",
    ):
        monkeypatch.setattr(name, refuse(name))
    monkeypatch.setattr(socket.socket, "connect", local_only)
    # The tests' own switch would refuse before anything is asked.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return requests


def test_local_weights_ask_no_hub(
    sites: tuple[str, ...],
    trained: Path,
    tmp_path: Path,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    save_file(classifier(), tmp_path / "w.safetensors")
    starts = {
        "backbone": ("--pretrained-path", str(tmp_path / "w.safetensors"), "--finetune", "frozen"),
        "model": ("--init-from", str(trained)),
        "head": ("--init-from", str(trained.parent / "own.pth"), *HEAD),
        "scratch": (),
    }
    for name, start in starts.items():
        out = tmp_path / name
        command = ("adapt", *sites, *SMALL, "-m", "none", *start, "--out", str(out))
        assert run(command) == 0
        table = str(tmp_path / f"{name}.csv")
        assert run(("predict", str(out), "--images", sites[3], "--out", table)) == 0
    assert asked == []


def test_a_hub_is_asked_where_pretrained_asks_for_it(
    failing: Failing, sites: tuple[str, ...], tmp_path: Path, asked: list[str]
) -> None:
    """Shows that the test above would see it."""
    command = ("adapt", *sites, *SMALL, "--pretrained", "--out", str(tmp_path / "run"))
    said = failing(1, *command)
    assert "--pretrained could not load the weights of test_resnet" in said
    assert "timm.models._builder.load_state_dict_from_hf" in asked
