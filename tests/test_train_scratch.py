"""The baseline from random weights: what it is trained on, where it goes, when it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.assess.summary import summary_text
from daptkit.errors import UsageError
from daptkit.model import load_model_folder
from daptkit.recipes import adapt, evaluate
from daptkit.report.measure import measure_run
from daptkit.report.page import render
from daptkit.report.reading.verdict import estimates as read_estimates
from daptkit.report.restore import restore
from daptkit.run import RunFolder
from daptkit.train.progress import SilentReporter
from fakes import tiny_config, write_weights
from report_runs import dead_embedder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


def config_of(folder: Path, out: str, **values: Any) -> Any:
    weights = write_weights(folder, "daptkit_lenet")
    return tiny_config(folder, **{**weights, "out": str(folder / out), **values})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_model_folder(folder / "model").net.state_dict()


def test_it_is_the_source_only_run_without_weights(tmp_path: Path) -> None:
    """Frozen, at another rate and with a method: none of it reaches the baseline."""
    options = {"finetune": "frozen", "aug": "auto", "method": "coral", "from_scratch": True}
    run = adapt(config_of(tmp_path, "run", **options))
    alone = adapt(config_of(tmp_path, "alone", aug="auto", pretrained_path=None))
    assert alone.data["twin"] == "self"
    scratch, twin = weights_of(run.out / "scratch"), weights_of(run.out / "twin")
    for name, value in weights_of(alone.out).items():
        assert torch.equal(scratch[name], value), name
    assert not torch.equal(scratch["backbone.conv1.weight"], twin["backbone.conv1.weight"])
    figures = run.data["figures"]
    assert list(figures["source_validation"]) == ["from-scratch", "source-only", "adapted"]
    assert (
        figures["source_validation"]["from-scratch"]
        == alone.data["figures"]["source_validation"]["source-only"]
    )
    predicted = figures["prior"]["predicted_scratch"]
    assert predicted == alone.data["figures"]["prior"]["predicted_twin"]
    text = summary_text(figures)
    assert "from-scratch" in text and "from scratch" in text
    assert (run.out / "scratch" / "predictions.csv").exists()
    target = config_of(tmp_path, "x").target
    own, alone = (evaluate(out, target, device="cpu") for out in (run.out / "scratch", run.out))
    assert own["n"] == 30 and "from_scratch" not in own
    shown = alone["from_scratch"]
    for name in ("accuracy", "balanced_accuracy"):
        assert shown[name] == own[name]
        gained = alone[name]["value"] - own[name]["value"]
        assert shown["difference"][name]["value"] == pytest.approx(gained)
        assert shown["difference"][name]["low"] <= gained <= shown["difference"][name]["high"]


def test_its_estimates_stand_beside_the_others_and_decide_nothing(tmp_path: Path) -> None:
    options = {"method": "coral", "finetune": "frozen"}
    plain = adapt(config_of(tmp_path, "plain", **options)).data["verdict"]
    run = adapt(config_of(tmp_path, "run", **options, from_scratch=True))
    verdict = json.loads((run.out / "run.json").read_text())["verdict"]
    estimates = verdict["estimates"].pop("from-scratch")
    assert verdict == plain
    assert {row["name"] for row in estimates} >= {"atc", "doc", "gde"}
    assert estimates != verdict["estimates"]["source-only"]
    with dead_embedder() as embedder:
        restored = restore(RunFolder(run.out), SilentReporter(), device="cpu")
        report = measure_run(restored, embedder).data
    page, _ = render(report, {})
    assert '<th scope="col" class="num">From scratch</th>' in page
    assert "has no part in the verdict" in page
    rows = report["verdict"]["estimates"]
    (row,) = [row for row in rows["from-scratch"] if row["name"] == "gde"]
    shown = {r["name"]: r["values"]["from-scratch"] for r in read_estimates(report)}
    assert shown["Agreement of heads trained apart"] == row["estimated_accuracy"]
    # Heads of features in which a resample shows one class only cannot be trained.
    rows["from-scratch"] = [r for r in rows["from-scratch"] if r["name"] != "gde"]
    shown = {r["name"]: r["values"]["from-scratch"] for r in read_estimates(report)}
    assert shown["Agreement of heads trained apart"] == {"value": None}
    assert "From scratch" in render(report, {})[0]


def test_it_is_trained_once_and_measured_again(tmp_path: Path) -> None:
    lines: list[str] = []

    class Listener(SilentReporter):
        def line(self, text: str) -> None:
            lines.append(text)

    first = adapt(config_of(tmp_path, "a", from_scratch=True, layer_decay=0.5))
    second = adapt(config_of(tmp_path, "b", from_scratch=True), reporter=Listener())
    assert "from-scratch twin: reused from an earlier run" in lines
    names = ("predictions.csv", "metrics.jsonl")
    for name in names:
        one, other = ((r.out / "scratch" / name).read_bytes() for r in (first, second))
        assert one == other
    with dead_embedder() as embedder:
        restored = restore(RunFolder(second.out), SilentReporter(), device="cpu")
        data = measure_run(restored, embedder).data
    assert data["from_scratch"]["n"] == 30
    stored = json.loads((second.out / "run.json").read_text())["figures"]
    accuracy = stored["source_validation"]["from-scratch"]["accuracy"]
    assert data["from_scratch"]["accuracy"]["value"] == pytest.approx(accuracy)


def test_a_run_without_weights_is_its_own_baseline(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--from-scratch: the run starts from random weights"):
        adapt(tiny_config(tmp_path, from_scratch=True))
