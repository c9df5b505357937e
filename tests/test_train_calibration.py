"""The calibration of a run: chosen by patients, recorded, stored and read by every command."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from daptkit.errors import DataError
from daptkit.model import folder as model_folder
from daptkit.model import load_model_folder, save_model_folder
from daptkit.recipes import evaluate, predict
from daptkit.run import RunFolder
from daptkit.shift import Calibration, PredictionRule, choose_calibration, fit_chosen_rule
from daptkit.train.adaptation import Trained, run_adaptation
from daptkit.train.crossfit import HeldOut
from daptkit.train.deliver import with_rule
from daptkit.train.progress import SilentReporter
from fakes import tiny_config, write_npz


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run whose validation images are enough for every kind of calibration."""
    folder = tmp_path_factory.mktemp("calibrated")
    config = tiny_config(folder)
    write_npz(Path(config.source[0]), n=360, seed=1)
    return run_adaptation(config, SilentReporter())


def test_run_records_and_stores_the_choice_that_its_rule_rests_on(trained: Trained) -> None:
    held, run = trained.twin.held_out, RunFolder(trained.folder.root)
    expected = choose_calibration(held.logits, held.labels, kinds=("temperature", "bcts", "vector"))
    assert len(expected.nll) == 3
    recorded = json.loads(run.record.read_text())["figures"]["calibration"]
    assert recorded == {"source-only": expected.to_json()}
    meta = json.loads((run.model / "model.json").read_text())
    assert meta["calibration_choice"] == expected.to_json()
    assert meta["rule"]["calibration"] == expected.calibration.to_json()
    assert "calibrated by" in trained.result.summary


@pytest.mark.parametrize("folds", [1, 5])
def test_patients_are_not_split_between_fit_and_score(trained: Trained, folds: int) -> None:
    """Copies of a patient in both parts would make every calibration look right."""
    data, rng = trained.prepared.data, np.random.default_rng(0)
    rows = HeldOut(np.zeros((0, 3)), np.zeros(0, np.int64), folds).rows(data)
    every = np.sort(np.concatenate([data.train_rows, data.val_rows]))
    assert np.array_equal(rows, every if folds > 1 else data.val_rows)
    patients = np.arange(len(data.source)) % 12
    grouped = replace(data, source=replace(data.source, groups=patients))
    held = HeldOut(rng.normal(size=(12, 3))[patients[rows]], patients[rows] % 3, folds)
    made = with_rule(
        trained.twin.net,
        trained.prepared.classes,
        grouped,
        trained.twin.passes,
        held,
        trained.twin.fit,
        "map",
    )
    _, by_patient = fit_chosen_rule(
        held.logits, held.labels, None, None, "map", "abc", groups=patients[rows]
    )
    _, by_image = fit_chosen_rule(held.logits, held.labels, None, None, "map", "abc")
    assert made.choice is not None
    assert made.choice.nll == by_patient.nll
    assert by_patient.nll["vector"] != by_image.nll["vector"]


@pytest.fixture
def scaled(trained: Trained, tmp_path: Path) -> Path:
    """The model folder of the run, its calibration one that scales classes apart."""
    loaded = load_model_folder(trained.folder.model)
    rule = PredictionRule.from_json(loaded.rule)
    calibration = Calibration(
        kind="vector", temperature=1.0, bias=(0.5, -0.2, 0.1), scale=(0.3, 2.0, 0.8)
    )
    save_model_folder(
        tmp_path / "model",
        loaded.net,
        loaded.config,
        classes=loaded.classes,
        conversion=loaded.conversion,
        rule=replace(rule, calibration=calibration).to_json(),
    )
    return tmp_path / "model"


def test_commands_read_a_model_that_scales_classes_apart(
    trained: Trained, scaled: Path, tmp_path: Path
) -> None:
    logits = trained.twin.passes.target_logits
    plain = trained.twin.rule
    z = logits * np.array([0.3, 2.0, 0.8]) + np.array([0.5, -0.2, 0.1])
    z += np.log(plain.prior_in_force()) - np.log(plain.source_prior)
    wanted = np.exp(z - z.max(1, keepdims=True))
    wanted /= wanted.sum(1, keepdims=True)
    target = trained.config.target
    predict(scaled, target, out=tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    made = np.array([[float(row[f"p_{c}"]) for c in trained.prepared.classes] for row in rows])
    assert made == pytest.approx(wanted, abs=1e-4)
    assert np.abs(made - plain.posterior(logits)).max() > 0.1
    assert evaluate(scaled, target, split="all")["n"] == len(rows)
    folder = tmp_path / "next"
    config = tiny_config(folder, init_from=str(scaled), bottleneck=256, epochs=1)
    assert run_adaptation(config, SilentReporter()).record["figures"]["calibration"]


def test_older_readers_refuse_what_they_would_misread_and_read_the_rest(
    trained: Trained, scaled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stated(folder: Path) -> Any:
        return json.loads((folder / "model.json").read_text())["format"]

    calibration = trained.twin.rule.calibration
    assert stated(scaled) == 2
    assert stated(trained.folder.model) == (2 if calibration.scale else 1)
    plain = load_model_folder(scaled)
    rule = PredictionRule.from_json(plain.rule)
    flat = replace(rule, calibration=Calibration.identity(3))
    other = scaled.with_name("flat")
    save_model_folder(
        other,
        plain.net,
        plain.config,
        classes=plain.classes,
        conversion=plain.conversion,
        rule=flat.to_json(),
    )
    monkeypatch.setattr(model_folder, "FORMAT", 1)
    with pytest.raises(DataError, match=r"has format 2, .*Update daptkit\.$"):
        load_model_folder(scaled)
    assert torch.equal(load_model_folder(other).net.head.weight, plain.net.head.weight)
