"""The verdict of a run, which model it delivers, and that no target label has a part in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from daptkit.assess import judge
from daptkit.config import AdaptConfig
from daptkit.method import Method
from daptkit.recipes import adapt, predict
from daptkit.report.restore import restore
from daptkit.run import RunFolder
from daptkit.train import adaptation
from daptkit.train import verdict as judging
from daptkit.train.adaptation import AdaptResult, run_adaptation
from daptkit.train.progress import SilentReporter
from fakes import in_process, tiny_config


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


class Collapse(Method):
    """Pulls every target image to one class."""

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        wanted = torch.zeros(len(target), dtype=torch.int64)
        return {"one": 20 * functional.cross_entropy(target.logits, wanted)}


class Idle(Method):
    """Changes nothing."""

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        return {}


def run_with(
    config: AdaptConfig, method: type[Method], monkeypatch: pytest.MonkeyPatch
) -> AdaptResult:
    loaded = [in_process(method)]
    monkeypatch.setattr(adaptation, "load_methods", lambda names: loaded)
    return run_adaptation(replace(config, method="fake"), SilentReporter()).result


def weights(folder: RunFolder) -> bytes:
    return (folder.model / "model.safetensors").read_bytes()


def test_where_adapting_hurt_the_source_only_model_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path, epochs=4)
    result = run_with(config, Collapse, monkeypatch)
    run = RunFolder(result.out)
    verdict = json.loads(run.record.read_text())["verdict"]
    assert verdict["verdict"] == "hurt"
    assert verdict["delivered"] == "source-only"
    assert any("nearly every target image bar" in r or "image 0" in r for r in verdict["reasons"])
    assert "adapting seems to have hurt" in result.summary
    assert "the source-only model is delivered (--no-guard delivers the adapted" in result.summary
    assert weights(run) == weights(run.twin) != weights(run.adapted)
    assert run.predictions.read_bytes() == run.twin.predictions.read_bytes()
    assert json.loads((run.model / "model.json").read_text())["methods"] == {}
    # What was delivered is what predicts.
    predict(run.root, config.target, out=tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == run.predictions.read_bytes()

    collapsed = run.adapted.predictions.read_bytes()
    assert collapsed != run.predictions.read_bytes()
    overruled = run_with(replace(config, guard=False, resume=True), Collapse, monkeypatch)
    verdict = json.loads(run.record.read_text())["verdict"]
    assert (verdict["verdict"], verdict["delivered"]) == ("hurt", "adapted")
    assert "delivered all the same, because of --no-guard" in overruled.summary
    assert run.predictions.read_bytes() == collapsed
    assert weights(run) != weights(run.twin)
    assert not run.adapted.root.exists()


@pytest.mark.parametrize("guard", [True, False])
def test_the_report_finds_the_adapted_model_where_it_was_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guard: bool
) -> None:
    config = tiny_config(tmp_path, epochs=4, guard=guard)
    result = run_with(config, Collapse, monkeypatch)
    run = RunFolder(result.out)
    monkeypatch.setattr("daptkit.report.restore.load_methods", lambda names: [in_process(Collapse)])
    # The method is not installed, so its options cannot be looked up.
    monkeypatch.setattr("daptkit.report.restore.resolve_config", lambda *a: config)
    monkeypatch.setattr("daptkit.report.restore.parse_method", lambda text: ["fake"])
    trained = restore(run, SilentReporter())
    assert trained.adapted is not None
    place = run.adapted if guard else run
    predicted = trained.adapted.rule.predict(trained.adapted.passes.target_logits)
    rows = place.predictions.read_text().splitlines()[1:]
    assert [trained.prepared.classes[i] for i in predicted] == [r.split(",")[-2] for r in rows]
    assert len(set(predicted.tolist())) == 1


def test_a_method_that_changes_nothing_is_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_with(tiny_config(tmp_path, epochs=4), Idle, monkeypatch)
    verdict = result.data["verdict"]
    assert verdict["changed"] == 0.0
    assert verdict["verdict"] in ("no evidence", "can't know")
    assert all(d["value"] == 0.0 for d in verdict["estimated_differences"].values())
    assert verdict["delivered"] == "adapted"
    assert not RunFolder(result.out).adapted.root.exists()


@pytest.mark.parametrize("declared", [False, True])
def test_what_a_method_declares_of_its_loss_reaches_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    """Of several methods one that raises confidence is enough."""
    given: list[bool] = []

    def watched(*samples: Any, raises_confidence: bool, **values: Any) -> Any:
        given.append(raises_confidence)
        return judge(*samples, raises_confidence=raises_confidence, **values)

    monkeypatch.setattr("daptkit.train.verdict.judge", watched)
    loaded = [
        in_process(Idle, "quiet"),
        in_process(Idle, "sure", raises_confidence=declared),
    ]
    monkeypatch.setattr(adaptation, "load_methods", lambda names: loaded)
    config = tiny_config(tmp_path, method="quiet+sure")
    verdict = run_adaptation(config, SilentReporter()).record["verdict"]
    assert given == [declared]
    assert verdict["raises_confidence"] is declared
    assert bool(set(verdict["counted"]) & {"atc", "doc"}) is not declared


def test_no_target_label_has_a_part_in_it(tmp_path: Path) -> None:
    found = []
    for name in ("true", "shuffled"):
        folder = tmp_path / name
        config = tiny_config(folder, method="coral", epochs=2)
        if name == "shuffled":
            with np.load(config.target) as file:
                parts = dict(file)
            for split in ("train", "val", "test"):
                parts[f"{split}_labels"] = np.random.default_rng(0).permutation(
                    parts[f"{split}_labels"]
                )
            np.savez(config.target, **parts)
        result = adapt(config)
        found.append((result.data["verdict"], (result.out / "predictions.csv").read_bytes()))
    assert found[0] == found[1]
    kinds = {row["name"] for row in found[0][0]["estimates"]["adapted"]}
    assert {"atc", "doc", "gde"} <= kinds


def test_large_sites_are_diagnosed_on_some_whole_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tmp_path)
    trained = run_adaptation(config, SilentReporter())
    prepared, twin = trained.prepared, trained.twin
    whole = judging.diagnose_twin(prepared, twin, 0)
    # Two images a patient at the target; the source's 30 are no more than the limit.
    pairs = np.arange(len(prepared.data.target)) // 2
    data = prepared.data
    data = replace(data, target=replace(data.target, groups=pairs))
    seen: dict[str, Any] = {}

    def diagnose(*arrays: Any, **given: Any) -> Any:
        seen.update(given, arrays=arrays)
        return whole

    monkeypatch.setattr(judging, "MAX_FOR_SHIFT", 41)
    monkeypatch.setattr(judging, "diagnose_shift", diagnose)
    found = judging.diagnose_twin(replace(prepared, data=data), twin, 0)
    assert (np.unique(seen["target_groups"], return_counts=True)[1] == 2).all()
    assert len(seen["target_groups"]) == len(seen["arrays"][3]) == len(seen["arrays"][4]) == 40
    assert len(seen["source_groups"]) == len(seen["arrays"][0]) == 30
    assert found.caveats[:-1] == whole.caveats
    assert found.caveats[-1] == (
        "The shift was diagnosed on 40 of 90 target images, those of 20 images taken for patients"
        " drawn at random."
    )
    monkeypatch.setattr(judging, "MAX_FOR_SHIFT", 90)
    assert judging.diagnose_twin(replace(prepared, data=data), twin, 0) is whole


def test_a_run_without_a_method_has_no_verdict(tmp_path: Path) -> None:
    result = adapt(tiny_config(tmp_path))
    assert result.data["verdict"] is None
    assert "verdict" not in result.summary
