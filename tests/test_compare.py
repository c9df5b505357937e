"""Comparisons: what they run, measure, choose and write, and what survives a fault."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import daptkit
from daptkit.cli.main import run
from daptkit.errors import DaptkitError, DataError, PluginError, Terminated
from daptkit.model import AdaptNet
from daptkit.recipes.cell_choice import combine
from daptkit.recipes.cells import Plan
from daptkit.recipes.comparing import Comparison
from daptkit.report.reading.comparing import weights_line
from daptkit.train.loop import Trainer
from daptkit.train.progress import SilentReporter
from fakes import tiny_config, write_npz, write_weights

ROOT = Path(__file__).resolve().parent.parent
Failing = Callable[..., str]


def options(folder: Path, **values: Any) -> dict[str, Any]:
    """Return the options of a comparison whose runs take 100 steps, with a checkpoint after 50."""
    config = tiny_config(folder, epochs=2)
    given = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.name not in ("method", "out", "report", "method_options")
        and (getattr(config, f.name) != f.default or f.name in ("source", "target"))
    }
    return {**given, "out": str(folder / "cmp"), **values}


def flags(folder: Path, *more: str) -> list[str]:
    """Return the same as arguments of the command."""
    given = [
        (f"--{name.replace('_', '-')}", str(value[0] if name == "source" else value))
        for name, value in options(folder).items()
    ]
    return ["compare", *(word for pair in given for word in pair), *more]


class Lines(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[tuple[str, int]] = []

    def start(self, label: str, total: int, done: int) -> None:
        self.done.append((label, done))

    def line(self, text: str) -> None:
        self.lines.append(text)


def unclocked(data: dict[str, Any]) -> dict[str, Any]:
    """Return the content of compare.json without seconds and without true scores."""
    plain = json.loads(json.dumps(data))
    del plain["audit"]
    for values in [c["values"] for c in plain["cells"]] + list(plain["summary"].values()):
        values.pop("train_seconds", None)
    return plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def done(folder: Path) -> Comparison:
    """Source-only, which nobody names, and dann over two seeds, with the target's labels."""
    given = options(folder)
    return daptkit.compare(["dann"], seeds=2, target_labels=given["target"], **given)


def test_every_cell_is_an_ordinary_run(done: Comparison, folder: Path) -> None:
    runs = done.out / "runs"
    names = ["dann-seed0", "dann-seed1", "none-seed0", "none-seed1"]
    assert sorted(p.name for p in runs.iterdir()) == names
    alone = daptkit.adapt(
        method="dann", report=False, **{**options(folder), "seed": 1, "out": str(folder / "alone")}
    )
    for name in ("metrics.jsonl", "predictions.csv", "model/model.safetensors"):
        assert (alone.out / name).read_bytes() == (runs / "dann-seed1" / name).read_bytes(), name
    assert not (runs / "dann-seed1" / "report.html").exists()


def test_the_source_only_model_is_trained_once_a_seed(done: Comparison) -> None:
    for seed in (0, 1):
        record = json.loads((done.out / "runs" / f"dann-seed{seed}" / "run.json").read_text())
        assert record["twin"] == "cached"
    assert [c["name"] for c in done.data["cells"] if c["values"]["train_seconds"] is None] == []


def test_the_files_hold_the_same_and_no_path(done: Comparison, folder: Path) -> None:
    assert json.loads((done.out / "compare.json").read_text()) == json.loads(json.dumps(done.data))
    for name in ("compare.json", "compare.csv", "compare.html"):
        text = (done.out / name).read_text()
        assert str(folder) not in text and "source.npz" not in text and "train/" not in text
    page = (done.out / "compare.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert 'src="data:image/svg+xml' in page


def test_the_csv_has_runs_means_and_deviations(done: Comparison) -> None:
    with (done.out / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    runs = [row for row in rows if row["row"] == "run" and row["method"] == "dann"]
    (mean,) = [row for row in rows if row["row"] == "method" and row["method"] == "dann"]
    assert [row["seed"] for row in runs] == ["0", "1"] and len(rows) == 6
    for name in ("source_balanced_accuracy", "estimate_atc", "score_im", "mmd2", "true_accuracy"):
        values = [float(row[name]) for row in runs]
        assert float(mean[name]) == pytest.approx(np.mean(values)), name
        assert float(mean[f"{name}_sd"]) == pytest.approx(np.std(values, ddof=1)), name
    for row in runs:
        low, value, high = (float(row[f"estimate_atc{end}"]) for end in ("_low", "", "_high"))
        assert low <= value <= high
    header = list(rows[0])
    first = next(i for i, name in enumerate(header) if name.startswith("true_"))
    assert all(name.startswith("true_") for name in header[first:])


def test_true_scores_are_those_of_evaluate_and_differences_are_paired(
    done: Comparison, folder: Path
) -> None:
    target = options(folder)["target"]
    scores = {
        m: daptkit.evaluate(done.out / "runs" / f"{m}-seed1", target, seed=1)
        for m in ("none", "dann")
    }
    found = done.data["audit"]["cells"]["dann-seed1"]
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        assert found[name] == scores["dann"][name]
    for name in ("accuracy", "balanced_accuracy"):
        gained = scores["dann"][name]["value"] - scores["none"][name]["value"]
        assert found["difference"][name]["value"] == pytest.approx(gained)
    assert done.data["audit"]["cells"]["none-seed1"]["difference"] is None
    assert "dann-seed1 minus source-only" in done.summary


def test_a_frozen_backbone_passes_the_labelled_images_once_for_all_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    given = options(tmp_path, **write_weights(tmp_path, "daptkit_lenet"), finetune="frozen")
    daptkit.compare(["coral", "histmatch"], seeds=1, **given)
    passed: list[int] = []
    forward = AdaptNet.trunk

    def counted(self: AdaptNet, images: torch.Tensor, *more: Any) -> torch.Tensor:
        passed.append(len(images))
        return forward(self, images, *more)

    monkeypatch.setattr(AdaptNet, "trunk", counted)
    labels = {"target_labels": given["target"], "resume": True}
    found = daptkit.compare(["coral", "histmatch"], seeds=1, **labels, **given)
    cells = found.data["audit"]["cells"]
    # Once as they are, and once as histmatch makes them.
    assert sum(passed) == 2 * cells["none-seed0"]["n"]
    for name in ("none", "coral", "histmatch"):
        scores = daptkit.evaluate(found.out / "runs" / f"{name}-seed0", given["target"], seed=0)
        assert cells[f"{name}-seed0"]["balanced_accuracy"] == scores["balanced_accuracy"]
    assert len({cells[name]["accuracy"]["value"] for name in cells}) > 1


def test_the_network_from_random_weights_is_a_row_and_no_choice(tmp_path: Path) -> None:
    given = options(tmp_path, **write_weights(tmp_path, "daptkit_lenet"), finetune="frozen")
    labels = {"target_labels": given["target"]}
    found = daptkit.compare(["coral"], seeds=1, from_scratch=True, **labels, **given)
    data = found.data
    assert data["methods"] == ["none", "coral"] and data["choice"]["rank"].keys() == {
        "none",
        "coral",
    }
    (cell,) = data["from_scratch"]["cells"]
    run = found.out / "runs" / "none-seed0"
    record = json.loads((run / "run.json").read_text())
    validation = record["figures"]["source_validation"]["from-scratch"]
    assert cell["values"]["source_balanced_accuracy"] == validation["balanced_accuracy"]
    # What the verdict of the run with a method says of it, found out on its own.
    record = json.loads((found.out / "runs" / "coral-seed0" / "run.json").read_text())
    made = {e["name"]: e for e in record["verdict"]["estimates"]["from-scratch"]}
    assert {e["name"]: e for e in cell["estimates"]} == made
    true = data["audit"]["cells"]["from-scratch-seed0"]
    scores = daptkit.evaluate(run / "scratch", given["target"], seed=0)
    assert true["accuracy"] == scores["accuracy"]
    twin = data["audit"]["cells"]["none-seed0"]["accuracy"]["value"]
    gained = true["difference"]["accuracy"]
    assert gained["value"] == pytest.approx(true["accuracy"]["value"] - twin)
    assert gained["low"] <= gained["value"] <= gained["high"]
    lines = [line.strip() for line in found.summary.splitlines()]
    lines = [line for line in lines if line.startswith("none, from scratch")]
    assert len(lines) == 3  # methods, estimates and true scores, but no selection scores
    assert "from-scratch-seed0 minus source-only: accuracy" in found.summary
    page = (found.out / "compare.html").read_text()
    assert page.count(">none, from scratch</th>") == 5 and "It is a baseline" in page
    with (found.out / "compare.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "from-scratch"]
    assert [row["row"] for row in rows] == ["run", "method"]
    assert {row["rank"] for row in rows} == {""}
    assert all(float(row["true_accuracy"]) == true["accuracy"]["value"] for row in rows)


def test_target_labels_change_the_true_scores_and_nothing_else(
    done: Comparison, folder: Path, tmp_path: Path
) -> None:
    given = options(folder)
    arrays = dict(np.load(given["target"]))
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] = np.roll(arrays[f"{split}_labels"], 1)
    other = tmp_path / "target.npz"
    np.savez(other, **arrays)
    # Everything is run anew, with wrong labels in --target as well.
    given |= {"target": str(other), "out": str(tmp_path / "cmp")}
    found = daptkit.compare(["dann"], seeds=2, target_labels=other, **given)
    assert unclocked(found.data) == unclocked(done.data)
    cells = [one.data["audit"]["cells"]["dann-seed0"]["accuracy"] for one in (found, done)]
    assert cells[0] != cells[1]
    lines = [one.summary.partition("True scores")[0] for one in (found, done)]
    assert [ln for ln in lines[0].splitlines() if "Recommended" in ln] == [
        ln for ln in lines[1].splitlines() if "Recommended" in ln
    ]


def test_finished_runs_are_kept_and_seeds_and_methods_may_be_added(
    done: Comparison, folder: Path
) -> None:
    models = sorted(done.out.glob("runs/*-seed0/model/model.safetensors"))
    before = [(p, p.stat().st_mtime_ns) for p in models]
    told = Lines()
    more = daptkit.compare(
        ["dann", "coral"], seeds=1, reporter=told, resume=True, **options(folder)
    )
    assert [(p, p.stat().st_mtime_ns) for p in models] == before and len(before) == 2
    states = [line.rpartition(": ")[2] for line in told.lines if line.startswith("run ")]
    assert states == ["kept", "kept", "starting"]
    kept = {c["name"]: c for c in done.data["cells"]}
    again = {c["name"]: c for c in more.data["cells"]}
    assert again.keys() == {"none-seed0", "dann-seed0", "coral-seed0"}
    assert again["dann-seed0"] == kept["dann-seed0"]
    assert more.data["audit"] is None and "true_" not in (more.out / "compare.csv").read_text()


VICTIM = """
import os, signal, sys
from pathlib import Path

import daptkit
from daptkit.train import loop
from test_compare import options

train_step, steps = loop.Trainer._train_step, 0

def step(self, *arguments):
    global steps
    train_step(self, *arguments)
    steps += 1
    # 100 steps of the source-only run, and dann's first epoch.
    if steps == 170:
        os.kill(os.getpid(), signal.SIGKILL)

loop.Trainer._train_step = step
daptkit.compare(["dann"], seeds=1, **options(Path(sys.argv[1])))
"""


def test_a_comparison_that_is_killed_continues(
    done: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = subprocess.run(
        [sys.executable, "-c", VICTIM, str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path]),
            "DAPTKIT_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert victim.returncode == -signal.SIGKILL, victim.stderr
    assert not (tmp_path / "cmp" / "compare.json").exists()
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    continues(tmp_path, done)


def test_a_comparison_that_is_terminated_continues(
    done: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step, steps = Trainer._train_step, 0

    def step(self: Any, *arguments: Any) -> None:
        nonlocal steps
        train_step(self, *arguments)
        steps += 1
        if steps == 70:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        # The source-only model comes from the cache.
        patch.setattr(Trainer, "_train_step", step)
        with pytest.raises(Terminated) as stopped:
            daptkit.compare(["dann"], seeds=1, **options(tmp_path))
    assert stopped.value.exit_code == 143
    continues(tmp_path, done)


def continues(folder: Path, whole: Comparison) -> None:
    """Continue a comparison that was stopped in the second half of dann's run."""
    told = Lines()
    found = daptkit.compare(["dann"], seeds=1, reporter=told, resume=True, **options(folder))
    kept = [line for line in told.lines if line.endswith(": kept")]
    assert kept == ["run 1 of 2, none-seed0: kept"]
    ((label, behind),) = told.done
    assert label == "dann" and behind >= 50
    for file in ("metrics.jsonl", "predictions.csv", "model/model.safetensors"):
        ours, theirs = (one / "runs" / "dann-seed0" / file for one in (found.out, whole.out))
        assert ours.read_bytes() == theirs.read_bytes(), file
    dann = found.data["cells"][1]
    assert dann["continued"] and dann["values"]["train_seconds"] is None


def test_a_run_that_fails_costs_the_others_nothing(
    done: Comparison, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import daptkit_coral.coral as coral

    def broken(*arguments: Any) -> Any:
        raise ValueError("canary /secret/patient-17")

    given = options(folder, out=str(tmp_path / "cmp"))
    with monkeypatch.context() as patch:
        patch.setattr(coral.CORAL, "losses", broken)
        told = Lines()
        found = daptkit.compare(["coral", "dann"], seeds=1, reporter=told, **given)
    assert [c["status"] for c in found.data["cells"]] == ["done", "failed", "done"]
    (failure,) = found.failures
    assert failure.cell == "coral-seed0" and "canary" in failure.reason
    assert "\n" not in failure.reason and failure.exit_code == 4
    assert isinstance(found.error, PluginError) and found.error.exit_code == 4
    assert "failed, coral-seed0: " in found.summary and "canary" in found.summary
    for name in ("compare.json", "compare.csv", "compare.html"):
        text = (found.out / name).read_text()
        assert "fault of a plugin" in text and "canary" not in text
    assert found.data["choice"]["rank"].keys() <= {"none", "dann"}
    again = daptkit.compare(["coral", "dann"], seeds=1, resume=True, **given)
    assert [c["status"] for c in again.data["cells"]] == ["done"] * 3
    assert again.error is None


def test_a_training_that_diverges_ends_with_exit_code_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("-m", "dann", "--dann.weight", "1e38", "--seeds", "1")
    arguments = flags(folder, *more, "--out", str(tmp_path / "cmp"))
    assert run(arguments) == 1
    shown = capsys.readouterr()
    assert "failed, dann-seed0: " in shown.out and "is not finite" in shown.out
    assert "daptkit: error: 1 of 2 runs failed: dann-seed0." in shown.err
    (cell,) = [c for c in read(tmp_path / "cmp")["cells"] if c["method"] == "dann"]
    assert "is not finite at step" in cell["reason"] and cell["exit_code"] == 1


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "compare.json").read_text())
    return found


def test_without_the_source_only_model_of_a_seed_its_methods_are_not_started(
    folder: Path, tmp_path: Path
) -> None:
    given = options(folder, out=str(tmp_path / "cmp"), lr=1e30)
    found = daptkit.compare(["dann"], seeds=1, **given)
    assert [one.cell for one in found.failures] == ["none-seed0", "dann-seed0"]
    assert found.failures[1].reason.startswith("not started")
    assert found.data["choice"]["recommended"] is None
    assert "no method" in found.summary and type(found.error) is DaptkitError
    assert not (tmp_path / "cmp" / "runs" / "dann-seed0").exists()


def test_the_command_prints_the_tables_or_the_json(
    done: Comparison, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(folder, "-m", "none", "-m", "dann", "--seeds", "2", "--resume")
    assert run(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("2 methods, mean ± sd of seeds 0 to 1.")
    assert "assuming that" in shown.out and shown.out.endswith("compare.html\n")
    chosen = read(done.out)["choice"]["recommended"]
    assert (f"its runs: {done.out}/runs/{chosen}-seed*\n" in shown.out) == (chosen is not None)
    assert "dann-seed1: kept" in shown.err
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read(done.out)


def test_a_configuration_file_gives_options_and_its_method(
    done: Comparison, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = done.out / "runs" / "dann-seed0" / "run.toml"
    out = tmp_path / "cmp"
    given = ("--config", str(config), "--out", str(out), "--seeds", "1", "--json")
    assert run(["compare", *given]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = {c["name"]: c["values"]["score_im"] for c in done.data["cells"] if c["seed"] == 0}
    assert {c["name"]: c["values"]["score_im"] for c in found["cells"]} == wanted


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "-m is missing"),
        (("-m", "dan"), "unknown method 'dan' (have: "),
        (("-m", "dann", "-m", "dann"), "-m dann is named twice"),
        (("-m", "dann+bbse", "-m", "bbse+dann"), "-m bbse+dann is named twice, as dann+bbse"),
        (("-m", "dann", "--coral.weight", "2"), "belongs to method 'coral', which -m does not"),
        (("-m", "dann", "--seeds", "0"), "--seeds"),
        (("-m", "dann", "--dann.weight", "-1"), "--dann.weight"),
        (("-m", "dann", "--epoch", "2"), "no such option '--epoch'"),
    ],
)
def test_options_that_cannot_work_write_nothing(
    more: tuple[str, ...], message: str, folder: Path, tmp_path: Path, failing: Failing
) -> None:
    out = tmp_path / "cmp"
    assert message in failing(2, *flags(folder, *more, "--out", str(out)))
    assert not out.exists()


def test_a_folder_in_use_is_refused(done: Comparison, folder: Path, failing: Failing) -> None:
    more = ("-m", "dann", "--seeds", "1")
    assert "is not empty; name a new folder, or continue" in failing(2, *flags(folder, *more))
    other = done.out / "runs" / "none-seed0"
    text = failing(2, *flags(folder, *more, "--out", str(other), "--resume"))
    assert "is not the folder of a comparison" in text
    text = failing(2, *flags(folder, *more, "--resume", "--lr", "0.02"))
    assert "another --lr, in 'none-seed0'; give the options" in text


def test_wrong_data_leaves_out_as_it_was(folder: Path, tmp_path: Path, failing: Failing) -> None:
    out = tmp_path / "cmp"
    more = ("-m", "dann", "--out", str(out), "--source", str(tmp_path / "nowhere"))
    assert "nowhere' does not exist" in failing(3, *flags(folder, *more))
    assert [p.name for p in out.iterdir()] == [".lock"]


def test_labels_that_cannot_be_used_are_told_before_the_methods_run(
    done: Comparison, folder: Path, tmp_path: Path, failing: Failing
) -> None:
    more = ("-m", "dann", "--seeds", "1", "--out", str(tmp_path / "cmp"))
    gone = str(tmp_path / "gone.csv")
    assert "does not exist" in failing(3, *flags(folder, *more, "--target-labels", gone))
    other = tmp_path / "other.npz"
    arrays = dict(np.load(write_npz(other, seed=2, n=9)))
    np.savez(other, **{**arrays, "test_labels": arrays["test_labels"] + 7})
    text = failing(3, *flags(folder, *more, "--target-labels", str(other), "--resume"))
    assert "labelled target has" in text and "unknown class" in text
    assert not (tmp_path / "cmp" / "runs" / "dann-seed0").exists()


def test_changed_images_are_not_compared(done: Comparison, tmp_path: Path) -> None:
    given = options(tmp_path)
    daptkit.compare(["none"], seeds=1, **given)
    write_npz(Path(given["target"]), seed=3, contrast=0.6)
    with pytest.raises(DataError, match="have changed since 'none-seed0' was run"):
        daptkit.compare(["none"], seeds=2, resume=True, **given)


def test_one_process_only(
    folder: Path, tmp_path: Path, failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    text = failing(2, *flags(folder, "-m", "dann", "--out", str(tmp_path / "cmp")))
    assert "without torchrun" in text


def measures(order: int, *, vetoes: tuple[str, ...] = (), source: float = 0.9) -> dict[str, Any]:
    """Return what is known of a run that all scores put at the given place."""
    names = {"im": -1, "entropy": 1, "snd": -1, "bnm": -1, "iwcv": 1, "atc": -1}
    return {
        "scores": {name: float(sign * order) for name, sign in names.items()},
        "vetoes": list(vetoes),
        "source_accuracy": source,
        "shift": {"kind": "covariate", "prior": None},
    }


def plan(*methods: str, seeds: int = 2) -> Plan:
    return Plan(out=Path("x"), resume=False, methods=methods, seeds=tuple(range(seeds)), cells=())


def test_ranks_are_means_of_places_within_the_seeds() -> None:
    places = {"none": (2, 2), "a": (1, 3), "b": (3, 1)}
    measured = {f"{m}-seed{k}": measures(p[k]) for m, p in places.items() for k in (0, 1)}
    measured["b-seed0"]["source_accuracy"] = 0.95
    found = combine(plan("none", "a", "b"), measured)
    assert found["rank"] == {"none": 2.0, "a": 2.0, "b": 2.0}
    # Equal means: the higher source accuracy, then source-only, which comes first.
    assert found["order"] == ["b", "none", "a"] and found["recommended"] == "b"
    assert found["seeds"]["0"]["order"] == ["a", "none", "b"]


def test_scores_of_the_target_do_not_choose_among_methods_that_train_them() -> None:
    """A sure model is best by every such score, but wrong where it resembles the target."""
    measured = {f"{m}-seed{k}": measures(p) for m, p in (("none", 2), ("sure", 1)) for k in (0, 1)}
    for k in (0, 1):
        measured[f"sure-seed{k}"]["scores"]["iwcv"] = 3.0
    trusting = combine(plan("none", "sure"), measured)
    assert trusting["recommended"] == "sure" and trusting["raise_confidence"] == []
    for k in (0, 1):
        measured[f"sure-seed{k}"]["raises_confidence"] = True
    found = combine(plan("none", "sure"), measured)
    assert found["recommended"] == "none" and found["raise_confidence"] == ["sure"]
    assert found["seeds"]["0"]["weights"] == {n: float(n == "iwcv") for n in measures(1)["scores"]}
    said = weights_line({"choice": found})
    assert "IW 1, ATC 0" in said and "The loss of sure raises confidence on the target" in said
    # One that is vetoed takes part in no ranking, so the others are ranked as ever.
    for k in (0, 1):
        measured[f"sure-seed{k}"]["vetoes"] = ["x"]
    assert combine(plan("none", "sure"), measured)["seeds"]["0"]["weights"]["atc"] == 0.5


def test_a_method_that_is_vetoed_or_fails_in_one_seed_has_no_rank() -> None:
    measured = {f"{m}-seed{k}": measures(p) for m, p in (("none", 3), ("a", 1)) for k in (0, 1)}
    measured["b-seed0"] = measures(2)
    measured["a-seed1"]["vetoes"] = ["nearly every target image gets the same class"]
    found = combine(plan("none", "a", "b"), measured)
    assert found["rank"].keys() == {"none"} and found["recommended"] == "none"
    assert found["vetoes"] == {"a": ["seed 1: nearly every target image gets the same class"]}
    everything = {name: {**one, "vetoes": ["x"]} for name, one in measured.items()}
    assert combine(plan("none", "a"), everything)["recommended"] is None
