"""The demo: synthetic sites, one run, true scores, and what the command prints."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from daptkit.cli.main import run
from daptkit.data.simulate import TARGET_SITE
from daptkit.recipes.demonstrating import DemoPlan, DemoResult, run_demo, summary_of
from daptkit.train.progress import SilentReporter

TINY = DemoPlan(n_images=48, size=32, epochs=1)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    """A finished demo of 48 images a site."""
    out = tmp_path_factory.mktemp("demo") / "new"
    return run_demo(out, TINY, 1, "cpu", 1, SilentReporter())


def accuracy(predictions: Path) -> float:
    """Share of right predictions on test images, whose class is the name of their folder."""
    with predictions.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert len(rows) == 12
    return float(np.mean([Path(row["path"]).parent.name == row["prediction"] for row in rows]))


def test_the_scores_are_those_of_the_predictions(shown: DemoResult) -> None:
    folders = {"source-only": shown.out / "run" / "twin", "adapted": shown.out / "run"}
    values = {}
    for name, folder in folders.items():
        found = shown.data["scores"][name]
        assert found["n"] == 12
        values[name] = found["accuracy"]["value"]
        assert values[name] == pytest.approx(accuracy(folder / "predictions.csv"))
        assert found["accuracy"]["low"] <= values[name] <= found["accuracy"]["high"]
    gain = values["adapted"] - values["source-only"]
    assert shown.data["gain"]["accuracy"] == pytest.approx(gain)


def test_the_report_holds_the_true_scores_and_why_they_are_known(shown: DemoResult) -> None:
    truth = json.loads((shown.out / "run" / "report.json").read_text())["true_scores"]
    assert "synthetic" in truth["why"]
    assert truth["scores"] == shown.data["scores"]
    page = Path(shown.data["report"])
    assert page == shown.out / "run" / "report.html"
    assert "synthetic" in page.read_text()


def test_the_methods_run_with_their_defaults_but_for_the_delay(shown: DemoResult) -> None:
    from daptkit.config import from_toml
    from daptkit_bbse.plugin import BBSEOptions
    from daptkit_dann.plugin import DANNOptions

    stored = from_toml((shown.out / "run" / "run.toml").read_text(), "run.toml")
    options = stored["method_options"]
    assert DANNOptions(**options["dann"]) == DANNOptions(delay=0.3)
    assert BBSEOptions(**options["bbse"]) == BBSEOptions()
    assert stored["seed"] == 1


def test_the_summary_says_what_is_synthetic_and_gives_both_scores(shown: DemoResult) -> None:
    assert "synthetic" in shown.summary.splitlines()[0]
    assert "36 labelled images" in shown.summary
    assert len(list((shown.out / "sites" / "source" / "train").rglob("*.png"))) == 36
    for model in ("source-only", "adapted"):
        score = shown.data["scores"][model]["balanced_accuracy"]
        shown_as = f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
        assert shown_as in shown.summary
    assert f"report: {shown.out / 'run' / 'report.html'}" in shown.summary
    assert "daptkit adapt --source SITE_A --target SITE_B" in shown.summary
    assert "helped" not in shown.summary


def figures(estimate: dict[str, float] | None) -> dict[str, Any]:
    score = {"value": 0.5, "low": None, "high": None}
    scores = {"n": 12, "accuracy": score, "balanced_accuracy": score, "auroc": score}
    true = dict(zip(("normal", "benign", "malignant"), TARGET_SITE.prevalence, strict=True))
    return {
        "method": "dann+bbse",
        "n_train": 36,
        "sites": "d/sites",
        "run": "d/run",
        "report": None,
        "scores": {"source-only": scores, "adapted": scores},
        "prior": {"source": true, "target": true, "estimate": estimate},
    }


def test_the_summary_tells_an_estimate_from_an_abstention() -> None:
    known = summary_of(figures({"normal": 0.625, "benign": 0.25, "malignant": 0.125}))
    assert "0.625      0.250      0.125" in known
    assert "did not trust" not in known
    unknown = summary_of(figures(None))
    assert "estimated" not in unknown
    assert "bbse did not trust its estimate" in unknown
    assert "run: d/run" in unknown


def test_the_error_of_the_estimate_is_its_l1_distance(shown: DemoResult) -> None:
    prior = shown.data["prior"]
    if prior["estimate"] is None:
        assert prior["l1_error"] is None
        return
    wanted = sum(
        abs(prior["estimate"][name] - share)
        for name, share in zip(prior["target"], TARGET_SITE.prevalence, strict=True)
    )
    assert prior["l1_error"] == pytest.approx(wanted)


@pytest.mark.parametrize("what", ["a file in it", "a file"])
def test_a_folder_in_use_is_refused(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    kept = out if what == "a file" else out / "kept.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("kept")
    assert run(["demo", "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "is not an empty folder; name a new one with --out" in captured.err
    assert kept.read_text() == "kept"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_missing_plugin_is_told_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAPTKIT_DISABLE", "dann")
    assert run(["demo", "--out", str(tmp_path / "out")]) == 2
    assert "dann" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake: Any = ModuleType("daptkit.recipes")
    calls = []

    def demo(*arguments: Any, reporter: Any, **options: Any) -> Any:
        reporter.line("progress")
        calls.append((arguments, options))
        return SimpleNamespace(summary="text", data={"gain": {"accuracy": 0.5}})

    fake.demo = demo
    monkeypatch.setitem(sys.modules, "daptkit.recipes", fake)
    assert run(["demo"]) == 0
    assert capsys.readouterr().out == "text\n"
    assert run(["demo", "--out", "d", "--seed", "7", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"gain": {"accuracy": 0.5}}
    defaults = {"seed": 0, "device": "auto", "workers": None}
    assert calls == [
        (("daptkit-demo",), defaults),
        (("d",), {**defaults, "seed": 7, "device": "cpu"}),
    ]
