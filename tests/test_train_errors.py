"""What a user or a machine can get wrong: one clear line, early, with nothing lost."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from daptkit.config import from_toml, to_toml
from daptkit.data import Conversion
from daptkit.errors import DaptkitError, DataError, PluginError, UsageError
from daptkit.host import LoadedMethod
from daptkit.method import Method
from daptkit.model import load_model_folder
from daptkit.recipes import adapt, evaluate, predict
from daptkit.train import adaptation
from daptkit.train.device import (
    Precision,
    derive_seed,
    resolve_device,
    seed_default_generators,
)
from daptkit.train.guard import memory_guard, plugin_guard
from daptkit.train.network import network_source
from daptkit.train.progress import SilentReporter
from fakes import drawn, in_process, method_of, tiny_config, write_npz

CANARY = "Jane-Doe-1970"


class Lines(SilentReporter):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if anything is trained."""

    def refuse(job: Any) -> Any:
        raise AssertionError("training began before the mistake was found")

    monkeypatch.setattr("daptkit.train.models.Trainer", refuse)
    monkeypatch.setattr("daptkit.train.twin.Trainer", refuse)


def with_method(monkeypatch: pytest.MonkeyPatch, method: LoadedMethod) -> None:
    monkeypatch.setattr(adaptation, "load_methods", lambda names: [method])


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"source": ("nowhere",)}, DataError, "'nowhere' does not exist"),
        ({"source": ()}, DataError, "no images were given"),
        ({"target": "nowhere.npz"}, DataError, "'nowhere.npz' does not exist"),
        ({"target_split": "tset"}, DataError, "no split 'tset'.*Did you mean 'test'"),
        ({"source_split": "dev"}, DataError, "no split 'dev'"),
        ({"decide": "sens=4:0.95"}, UsageError, "the classes are 0, 1, 2"),
        ({"device": "cuda:99"}, UsageError, "--device 'cuda:99'"),
        ({"device": "tpu"}, UsageError, "--device 'tpu' is not one of"),
        ({"amp": True, "amp_dtype": "float16"}, UsageError, "float16 needs a GPU"),
        ({"model": "resnet19"}, UsageError, "resnet19"),
        ({"finetune": "frozen"}, UsageError, "needs a trained trunk"),
        ({"finetune": "gradual"}, UsageError, "--finetune gradual needs a trained trunk"),
    ],
)
def test_a_mistake_is_found_early_and_leaves_out_as_it_was(
    tmp_path: Path, values: dict[str, Any], kind: type[DaptkitError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        adapt(tiny_config(tmp_path, **values))
    out = tmp_path / "run"
    assert not out.exists() or {path.name for path in out.iterdir()} <= {".lock"}


def test_after_a_mistake_the_same_out_serves(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        adapt(tiny_config(tmp_path, source=("nowhere",)))
    assert (adapt(tiny_config(tmp_path)).out / "run.json").exists()


@pytest.mark.usefixtures("untrained")
def test_a_layer_of_a_frozen_backbone_is_refused_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.pth"
    config = tiny_config(tmp_path, finetune="frozen", aug="auto", pretrained_path=str(weights))
    scratch = replace(config, finetune="full", pretrained_path=None)
    backbone = network_source(scratch, ("0", "1", "2")).template.backbone
    torch.save(backbone.state_dict(), weights)
    name = next(name for name, _ in backbone.named_children())
    deep = type("Deep", (Method,), {"layers": (f"backbone.{name}",)})
    with_method(monkeypatch, in_process(deep))
    with pytest.raises(UsageError, match="lies in the backbone"):
        adapt(config)


def test_layers_that_are_one_text_are_a_plugin_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = type("Wrong", (Method,), {"layers": "features"})
    with_method(monkeypatch, in_process(wrong))
    with pytest.raises(PluginError, match=r"'fake' \(daptkit-fake 1\.2\): layers must be a tuple"):
        adapt(tiny_config(tmp_path))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("Unable to allocate 8 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_lack_of_memory_is_no_fault_of_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        raise error

    def hook(self: Method, ctx: Any) -> None:
        raise error

    broken = method_of(losses)
    with_method(monkeypatch, in_process(broken))
    with pytest.raises(DaptkitError, match="out of memory at step 0, and no smaller") as caught:
        adapt(tiny_config(tmp_path))
    assert not isinstance(caught.value, PluginError)
    # Outside a step nothing is tried.
    with_method(monkeypatch, in_process(type("Hook", (broken,), {"on_fit_start": hook})))
    with pytest.raises(DaptkitError, match="out of memory; try a --batch-size below 8") as caught:
        adapt(tiny_config(tmp_path, out=str(tmp_path / "other")))
    assert not isinstance(caught.value, PluginError)


def test_other_failures_are_not_called_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes$"), memory_guard("advice"):
        raise RuntimeError("shapes")
    with pytest.raises(PluginError, match="RuntimeError: shapes"), plugin_guard("m", "p 1", "x()"):
        raise RuntimeError("shapes")


def test_images_that_change_before_a_resume_are_noticed(tmp_path: Path) -> None:
    adapt(tiny_config(tmp_path, out=str(tmp_path / "run")))
    write_npz(tmp_path / "target.npz", seed=9)
    with pytest.raises(DaptkitError, match="the images or labels have changed"):
        adapt(tiny_config(tmp_path, resume=True))


def test_a_run_without_a_model_names_the_command_that_finishes_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.toml").write_text("")
    with pytest.raises(DataError, match=r"has no model yet; finish it with .*--resume"):
        evaluate(tmp_path / "run", tmp_path / "target.npz")
    with pytest.raises(DataError, match="not a model folder"):
        predict(tmp_path, tmp_path / "target.npz", out=tmp_path / "x.csv")
    with pytest.raises(UsageError, match="--domain is target or source"):
        evaluate(tmp_path / "run", tmp_path / "target.npz", domain="elsewhere")


def test_a_class_without_training_images_is_told_of(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    content = dict(np.load(tmp_path / "source.npz"))
    keep = content["train_labels"] != 2
    content["train_images"] = content["train_images"][keep]
    content["train_labels"] = content["train_labels"][keep]
    np.savez(tmp_path / "source.npz", **content)
    reporter = Lines()
    result = adapt(replace(config, method="bbse"), reporter=reporter)
    assert "warning: the source has no training images of class 2." in reporter.lines
    assert result.data["figures"]["prior"]["source"]["2"] == 0.0


def test_deep_images_of_the_target_alone_get_a_window(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    content = dict(np.load(tmp_path / "target.npz"))
    for split in ("train", "val", "test"):
        content[f"{split}_images"] = content[f"{split}_images"].astype(np.uint16) * 16
    np.savez(tmp_path / "target.npz", **content)
    result = adapt(config)

    conversion = Conversion.from_json(load_model_folder(result.out / "model").conversion)
    assert conversion.windows["int"][1] > 255


def test_mixed_precision_runs_deliver_what_predict_computes(tmp_path: Path) -> None:
    result = adapt(tiny_config(tmp_path, amp=True))
    predict(result.out, tmp_path / "target.npz", out=tmp_path / "again.csv", device="cpu")
    assert (tmp_path / "again.csv").read_text() == (result.out / "predictions.csv").read_text()


def manifest(folder: Path, seed: int, *, frozen_name: str) -> Path:
    """A CSV of 60 images whose patients and files carry the canary."""
    folder.mkdir()
    rows = []
    for row, (pixels, label) in enumerate(zip(*drawn(60, seed), strict=True)):
        name = f"{CANARY}-{frozen_name}-{row}.png"
        Image.fromarray(pixels).save(folder / name)
        rows.append(
            {"path": name, "label": f"c{label}", "patient_id": f"{CANARY}-{seed}-{row // 2}"}
        )
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "patient_id"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "images.csv"


def test_no_patient_and_no_path_is_written(tmp_path: Path) -> None:
    """A canary in names and ids reaches run.toml and predictions.csv, and nothing else."""
    source = manifest(tmp_path / f"{CANARY}-source", 1, frozen_name="s")
    target = manifest(tmp_path / f"{CANARY}-target", 2, frozen_name="t")
    values = {"source": (str(source),), "target": str(target), "in_chans": 1}
    full = adapt(tiny_config(tmp_path / "work", **values, method="dann+bbse"))
    frozen = adapt(
        tiny_config(
            tmp_path / "work",
            **values,
            out=str(tmp_path / "frozen"),
            init_from=str(full.out),
            finetune="frozen",
            aug="auto",
            method="mmd+bbse",
        )
    )
    files = [
        path
        for root in (full.out, frozen.out, tmp_path / "cache")
        for path in root.rglob("*")
        if path.is_file()
    ]
    assert {path.suffix for path in files} >= {".ckpt", ".json", ".jsonl", ".safetensors"}
    leaks = {path.name for path in files if CANARY.encode() in path.read_bytes()}
    assert leaks == {"run.toml", "predictions.csv"}
    assert CANARY not in frozen.summary
    assert "patients" in str(frozen.data["data"])


def test_seeds_of_different_streams_differ() -> None:
    seeds = {
        derive_seed(seed, step, stream)
        for seed in range(5)
        for step in range(200)
        for stream in range(4)
    }
    assert len(seeds) == 5 * 200 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert resolve_device("cpu").type == "cpu"
    assert (
        not Precision(torch.device("cpu"), enabled=True, dtype="bfloat16").new_scaler().is_enabled()
    )


def test_a_weights_file_with_objects_is_loaded_only_where_the_run_trusts_it(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    net = network_source(tiny_config(tmp_path), ("0", "1", "2")).template
    torch.save({"state_dict": net.backbone.state_dict(), "args": Path("x")}, weights)
    head = {"init_from": str(weights), "classes": "0,1,2"}
    for values in (head, {"pretrained_path": str(weights)}):
        with pytest.raises(DataError, match="could run code when loaded"):
            network_source(tiny_config(tmp_path, **values), ("0", "1", "2"))
    trusting = tiny_config(tmp_path, pretrained_path=str(weights), trust=True)
    loaded = network_source(trusting, ("0", "1", "2")).weights
    assert loaded is not None and not loaded.missing


def test_default_generators_draw_what_manual_seed_gives() -> None:
    torch.manual_seed(77)
    wanted = torch.rand(5)
    seed_default_generators(torch.device("cpu"), 77)
    assert torch.equal(torch.rand(5), wanted)


def test_trust_is_never_taken_from_a_file(tmp_path: Path) -> None:
    text = to_toml(tiny_config(tmp_path, trust=True))
    assert not any(line.startswith("trust") for line in text.splitlines())
    with pytest.raises(UsageError, match=r"run\.toml: trust is not taken from a file"):
        from_toml(f"trust = true\n{text}", "run.toml")


def test_trust_is_announced(tmp_path: Path) -> None:
    lines = Lines()
    adapt(tiny_config(tmp_path, trust=True), reporter=lines)
    assert any(line.startswith("warning: --trust") for line in lines.lines)
