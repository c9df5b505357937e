"""``daptkit diagnose --run``: a finished run, diagnosed on its images by a model of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daptkit
from daptkit.cli.main import run
from daptkit.recipes import diagnosing
from daptkit.recipes.diagnosis_inputs import Sites
from daptkit.run import RunFolder
from daptkit.train.adaptation import run_adaptation
from daptkit.train.progress import SilentReporter
from fakes import tiny_config, write_npz, write_weights

CPU = ("--device", "cpu", "--permutations", "199")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both sites and a run on frozen features that is called ``run``."""
    folder = tmp_path_factory.mktemp("Zebedee")
    write_npz(folder / "source.npz", n=330, seed=1)
    write_npz(folder / "target.npz", seed=2, contrast=0.5)
    weights = write_weights(folder, "daptkit_lenet")
    options: dict[str, Any] = {"method": "coral", "finetune": "frozen", "guard": False}
    config = tiny_config(folder, **weights, **options, cache=str(folder / "cache"))
    run_adaptation(config, SilentReporter())
    return folder


@pytest.fixture
def moved(home: Path, tmp_path: Path) -> Path:
    """A copy of the folder whose run names the copy's data."""
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    config = RunFolder(copy / "run").config
    config.write_text(config.read_text().replace(str(home), str(copy)))
    return copy


def doc(estimates: list[dict[str, Any]]) -> float:
    """Return one of several estimates of accuracy."""
    (value,) = [e["estimated_accuracy"]["value"] for e in estimates if e["name"] == "doc"]
    return float(value)


def test_it_is_the_diagnosis_of_the_runs_verdict(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Sites] = []
    read = diagnosing.read_run_sites
    monkeypatch.setattr(diagnosing, "read_run_sites", lambda *a: seen.append(read(*a)) or seen[-1])
    before = sorted((path, path.stat().st_mtime_ns) for path in (home / "run").rglob("*"))
    out = tmp_path / "out"
    assert run(["diagnose", "--run", str(home / "run"), *CPU, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "diagnosis.json").read_text())
    record = json.loads((home / "run" / "run.json").read_text())
    shift = record["verdict"]["shift"]
    assert (found["kind"], found["diagnosis"]["reasons"]) == (shift["kind"], shift["reasons"])
    # Those that the run held out, and no image goes through the frozen trunk again.
    assert found["data"]["source"]["tested"] == record["data"]["source_val"] == 110
    assert seen[0].prepared.cache_hits == 2
    estimates = record["verdict"]["estimates"]
    assert doc(found["accuracy_estimates"]) == pytest.approx(doc(estimates["source-only"]))
    validation = record["figures"]["source_validation"]["source-only"]
    assert found["run"]["source_accuracy"] == pytest.approx(validation["accuracy"])
    page = (out / "diagnosis.html").read_text()
    assert "the run's source-only daptkit_lenet is right on" in printed
    assert "source-only model of a run" in page
    assert "random weights" not in page + printed
    assert "Zebedee" not in page + json.dumps(found)
    after = sorted((path, path.stat().st_mtime_ns) for path in (home / "run").rglob("*"))
    assert after == before


def test_the_delivered_model_where_it_is_asked_for(
    home: Path, moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delivered = ("--run-model", "delivered", "--json")
    assert run(["diagnose", "--run", str(home / "run"), *CPU, *delivered]) == 0
    found = json.loads(capsys.readouterr().out)
    validation = json.loads((home / "run" / "run.json").read_text())["figures"]["source_validation"]
    assert found["run"]["by"] == "adapted"
    assert found["run"]["source_accuracy"] == pytest.approx(validation["adapted"]["accuracy"])
    estimates = json.loads((home / "run" / "run.json").read_text())["verdict"]["estimates"]
    assert doc(found["accuracy_estimates"]) == pytest.approx(doc(estimates["adapted"]))
    assert doc(estimates["adapted"]) != doc(estimates["source-only"])
    assert any("was trained to make the sites look alike" in text for text in found["caveats"])
    # Where the guard delivered the source-only model, that is what is diagnosed.
    folder = RunFolder(moved / "run")
    record = json.loads(folder.record.read_text())
    record["verdict"]["delivered"] = "source-only"
    folder.record.write_text(json.dumps(record))
    shutil.rmtree(folder.model)
    shutil.copytree(folder.twin.model, folder.model)
    again = daptkit.diagnose(
        run=str(folder.root), run_model="delivered", permutations=99, device="cpu"
    )
    assert again.data["run"]["by"] == "source-only"
    assert not any("look alike" in text for text in again.data["caveats"])


def test_target_labels_are_for_the_audit(home: Path, tmp_path: Path) -> None:
    with np.load(home / "target.npz") as file:
        labels = file["train_labels"]
    listed = tmp_path / "few.csv"
    lines = [f"train/{row},{labels[row]}" for row in range(60)]
    listed.write_text("\n".join(["path,label", *lines]) + "\n")
    options: dict[str, Any] = {"run": str(home / "run"), "permutations": 99, "device": "cpu"}
    plain = daptkit.diagnose(**options).data
    found = daptkit.diagnose(**options, target_labels=str(listed)).data
    assert found["target_labels"]["concept"]["images"] == 60
    for data in (plain, found):
        del data["target_labels"], data["run"]["seconds"]
    assert found == plain


def test_what_the_run_says_is_not_said_again(home: Path, failing: Callable[..., str]) -> None:
    given = ("diagnose", "--run", str(home / "run"))
    shown = failing(2, *given, "--model", "resnet18", "--img_size", "16")
    assert "says what --model, --img-size is; leave it out" in shown
    assert "--source" in failing(2, *given, "--source", "x")
    assert "give that too" in failing(
        2, "diagnose", "--source", "x", "--target", "y", "--run-model", "delivered"
    )
    assert "A finished run is diagnosed by --run" in failing(2, "diagnose")


def test_runs_that_cannot_be_diagnosed(
    moved: Path, tmp_path: Path, failing: Callable[..., str]
) -> None:
    folder = RunFolder(moved / "run")

    def shown(where: Path = folder.root) -> str:
        text = failing(3, "diagnose", "--run", str(where), *CPU, "--out", str(tmp_path / "out"))
        assert text.count("\n") == 1
        return text

    assert "does not exist" in shown(tmp_path / "none")
    assert not (tmp_path / "out").exists()
    record = folder.record.read_text()
    folder.record.unlink()
    assert "is not finished; finish it with" in shown()
    folder.record.write_text(record)
    (moved / "target.npz").rename(moved / "elsewhere.npz")
    assert "the target images of the run" in shown()
    write_npz(moved / "target.npz", seed=3)
    assert "of the target have changed since the run" in shown()
