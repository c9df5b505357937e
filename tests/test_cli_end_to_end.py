"""The commands as a user meets them: real runs on image files, exit codes, messages, signals."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daptkit.cli.main import run
from make_sites import CLASSES

WITH_REPORT = ("--model", "daptkit_lenet", "--batch-size", "8", "--epochs", "1", "--device", "cpu")
SMALL = (*WITH_REPORT, "--no-report")
Failing = Callable[..., str]


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "daptkit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(*arguments: str) -> tuple[int, str, str]:
    """Run a command in a process of its own; return exit code, stdout and stderr."""
    process = started(*arguments)
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def sites(folder: Path) -> tuple[str, ...]:
    return ("--source", str(folder / "source"), "--target", str(folder / "target"))


@pytest.fixture(scope="module")
def trained(two_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on class folders."""
    out = tmp_path_factory.mktemp("trained") / "run"
    code, text, err = finished(
        "adapt",
        *sites(two_sites),
        *("-m", "coral+bbse"),
        *WITH_REPORT,
        # What is delivered here must not hang on what a run of a second can show.
        "--no-guard",
        *("--out", str(out)),
    )
    assert code == 0, err
    assert text.startswith("method coral+bbse")
    assert text.endswith(f"report: {out / 'report.html'}\n")
    assert "coral" in err
    return out


def test_adapt_leaves_a_whole_run_folder(trained: Path, two_sites: Path) -> None:
    names = {p.name for p in trained.iterdir()} - {".lock"}
    assert names == {
        "run.toml",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "twin",
        "model",
        "predictions.csv",
        "report.html",
        "report.json",
        "figures",
        "embedding.csv",
    }
    with (trained / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    files = sorted(str(p.relative_to(two_sites / "target")) for p in two_sites.glob("target/*/*/*"))
    assert [row["path"] for row in rows] == files
    assert {row["prediction"] for row in rows} <= set(CLASSES)


def test_predict_ignores_how_the_images_are_filed(
    trained: Path, two_sites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (two_sites / "target" / "test").rglob("*.png"):
        shutil.copy(file, flat)
    out = tmp_path / "p.csv"
    assert run(["predict", str(trained), "--images", str(flat), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with out.open(newline="") as file:
        rows = {row["path"]: row["prediction"] for row in csv.DictReader(file)}
    with (trained / "predictions.csv").open(newline="") as file:
        before = {
            Path(row["path"]).name: row["prediction"]
            for row in csv.DictReader(file)
            if row["split"] == "test"
        }
    assert rows == before


def is_score(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"value", "low", "high"}


def test_evaluate_json(trained: Path, two_sites: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(trained), "--data", str(two_sites / "target"), "--json"]
    assert run([*command, "--bootstrap", "50"]) == 0
    scores = json.loads(capsys.readouterr().out)
    names = ("accuracy", "balanced_accuracy", "auroc", "ece", "nll", "brier")
    assert [name for name in scores if is_score(scores[name])] == list(names)
    assert scores["n"] == len(list((two_sites / "target" / "test").rglob("*.png")))
    for name in names[:4]:
        assert 0 <= scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"] <= 1
    for name in CLASSES:
        of_class = scores["per_class"][name]
        assert all(is_score(of_class[rate]) for rate in ("sensitivity", "specificity", "auroc"))


def test_evaluate_for_people(
    trained: Path, two_sites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(trained / "model", tmp_path / "elsewhere")
    command = ["evaluate", str(model), "--data", str(two_sites / "source"), "--domain", "source"]
    assert run([*command, "--split", "all", "--bootstrap", "0"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["n"] == "48"
    assert 0 <= float(lines["per_class.benign.sensitivity"]) <= 1


def test_adapt_json_is_all_of_stdout(
    two_sites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(["adapt", *sites(two_sites), *SMALL, "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((out / "run.json").read_text())
    assert "source-only" in captured.err


def test_the_configuration_and_the_seed_repeat_a_run(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    assert run(["adapt", "--config", str(trained / "run.toml"), "--out", str(out)]) == 0
    assert (out / "predictions.csv").read_bytes() == (trained / "predictions.csv").read_bytes()


def test_sigterm_and_resume(failing: Failing, two_sites: Path, tmp_path: Path) -> None:
    command = ("adapt", *sites(two_sites), "-m", "coral", *SMALL, "--epochs", "8")
    command = (*command, "--log-interval", "10", "--out", str(tmp_path / "run"))
    process = started(*command)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("coral 10/400"):
            process.send_signal(signal.SIGTERM)
            break
    out, err = process.communicate(timeout=200)
    assert process.returncode == 143, err
    assert out == ""
    assert err.splitlines()[-1].startswith("daptkit: error: ")
    assert "--resume" in err.splitlines()[-1]
    said = failing(3, "evaluate", str(tmp_path / "run"), "--data", str(two_sites / "target"))
    assert "has no model yet" in said
    assert "--resume" in said
    code, out, err = finished(*command, "--resume")
    assert code == 0, err
    (left,) = re.findall(r"^coral: (\d+) steps$", err, re.MULTILINE)
    assert 0 < int(left) <= 390
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [entry["step"] for entry in map(json.loads, lines) if entry["kind"] == "step"]
    assert steps == list(range(10, 401, 10))
    assert (tmp_path / "run" / "predictions.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "no such option '--epoch'. Did you mean '--epochs'? See"),
        (["-m", "dan"], "unknown method 'dan' (have: "),
        (["-m", "dan"], "Did you mean 'dann'?"),
        (["-m", "coral", "--coral.wieght", "2"], "Did you mean '--coral.weight'?"),
        (["-m", "coral", "--dann.weight", "2"], "belongs to method 'dann', which -m does not name"),
        (["--lr", "fast"], "'--lr': 'fast' is not a valid number."),
        (["--finetune", "frozen"], "give --pretrained-path, --pretrained or --init-from"),
        (["--model", "resnet81"], "unknown model 'resnet81'. Did you mean 'resnet18'?"),
        (["--device", "cuda:99"], "--device 'cuda:99'"),
        (["-m", "dann+dann"], "'dann' is named twice"),
        (["--decide", "sens=cyst:0.9"], "names class 'cyst'; the classes are benign, malignant"),
    ],
)
def test_options_that_cannot_work(
    failing: Failing, two_sites: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    command = ("adapt", *sites(two_sites), "--model", "daptkit_lenet", "--out", str(tmp_path / "r"))
    said = failing(2, *command, *arguments)
    assert message in said
    assert said.count("\n") == 1


def test_a_missing_source_option(failing: Failing, two_sites: Path, tmp_path: Path) -> None:
    said = failing(2, "adapt", "--target", str(two_sites / "target"), "--out", str(tmp_path))
    assert "--source is missing" in said


def test_an_out_that_is_not_empty(failing: Failing, trained: Path, two_sites: Path) -> None:
    before = (trained / "run.json").read_bytes()
    said = failing(2, "adapt", *sites(two_sites), *SMALL, "--out", str(trained))
    assert "is not empty; name a new folder, or continue with --resume." in said
    assert (trained / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 3\n", "unknown key 'epoch'. Did you mean 'epochs'?"),
        ("epochs = \n", "is not valid TOML"),
        ('epochs = "many"\n', "option 'epochs' takes a whole number, not 'many'."),
        ('method = "coral"\n[methods.coral]\nwieght = 1\n', "'coral.wieght'. Did you mean"),
    ],
)
def test_a_bad_configuration(
    failing: Failing, two_sites: Path, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(content)
    said = failing(
        2, "adapt", *sites(two_sites), "--config", str(file), "--out", str(tmp_path / "r")
    )
    assert message in said


def test_a_source_that_does_not_exist(failing: Failing, two_sites: Path, tmp_path: Path) -> None:
    target = ("--target", str(two_sites / "target"), "--out", str(tmp_path / "r"))
    said = failing(3, "adapt", "--source", str(tmp_path / "nowhere"), *target, *SMALL)
    assert f"'{tmp_path / 'nowhere'}' does not exist" in said
    # The same --out serves the corrected command.
    assert {p.name for p in (tmp_path / "r").iterdir()} <= {".lock"}


def test_a_source_without_labels(failing: Failing, two_sites: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in two_sites.glob("source/train/*/*.png"):
        shutil.copy(file, flat)
    target = ("--target", str(two_sites / "target"), "--out", str(tmp_path / "r"))
    said = failing(3, "adapt", "--source", str(flat), *target, *SMALL)
    assert f"'{flat}' has images but no class folders" in said


def test_a_truncated_image_is_named(failing: Failing, two_sites: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(two_sites, tmp_path / "sites")
    damaged = sorted(copied.glob("target/train/normal/*.png"))[0]
    os.truncate(damaged, damaged.stat().st_size // 2)
    name = str(damaged.relative_to(copied / "target"))
    command = ("adapt", *sites(copied), *SMALL, "--out", str(tmp_path / "r"))
    said = failing(3, *command)
    assert f"'{name}'" in said
    assert "--skip-unreadable" in said


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_truncated_image_can_be_left_out(
    trained: Path,
    two_sites: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    failing: Failing,
    command: str,
) -> None:
    copied = shutil.copytree(two_sites / "target" / "test", tmp_path / "test")
    damaged = sorted(copied.glob("normal/*.png"))[0]
    os.truncate(damaged, 200)
    arguments = {
        "predict": ["--images", str(copied), "--out", str(tmp_path / "p.csv")],
        "evaluate": ["--data", str(copied), "--bootstrap", "0"],
    }[command]
    assert f"'normal/{damaged.name}'" in failing(3, command, str(trained), *arguments)
    assert run([command, str(trained), *arguments, "--skip-unreadable", "1"]) == 0
    assert f"normal/{damaged.name}" in capsys.readouterr().err


def test_evaluate_refuses_an_unknown_class(
    failing: Failing, trained: Path, two_sites: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(two_sites / "target", tmp_path / "target")
    (copied / "test" / "benign").rename(copied / "test" / "cyst")
    said = failing(3, "evaluate", str(trained), "--data", str(copied))
    assert "'cyst'; known are benign, malignant, normal." in said


def test_evaluate_needs_labels_and_a_split_that_exists(
    failing: Failing, trained: Path, two_sites: Path, tmp_path: Path
) -> None:
    data = str(two_sites / "target")
    assert "it has test, train, or all" in failing(
        3, "evaluate", str(trained), "--data", data, "--split", "val"
    )
    file = next((two_sites / "target").rglob("*.png"))
    shutil.copy(file, tmp_path)
    assert "no class folders" in failing(3, "evaluate", str(trained), "--data", str(tmp_path))


def test_a_run_that_does_not_exist(failing: Failing, two_sites: Path, tmp_path: Path) -> None:
    said = failing(3, "evaluate", str(tmp_path / "no"), "--data", str(two_sites / "target"))
    assert str(tmp_path / "no") in said


def test_a_broken_plugin_exits_with_4(
    failing: Failing, two_sites: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"
    info = packages / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (packages / "broken_plugin.py").write_text("import nothing_like_this\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[daptkit]\nfaulty = broken_plugin\n")
    monkeypatch.syspath_prepend(str(packages))
    command = ("adapt", *sites(two_sites), *SMALL, "--out", str(tmp_path / "r"))
    said = failing(4, *command, "-m", "faulty")
    assert "broken 1.0" in said
    assert "nothing_like_this" in said
