"""What report.json and embedding.csv hold, against values computed another way."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daptkit.assess.scores import SCORES
from daptkit.config import AdaptConfig
from daptkit.errors import DaptkitError
from daptkit.report.build import write_measures
from daptkit.report.provenance import options_shown
from daptkit.report.series import training_series
from daptkit.train.adaptation import Trained
from fakes import CLASSES
from report_runs import CANARY, dead_embedder, finished

TRUE_SCORES = {"why": "drawn", "scores": {"source-only": {"n": 3}, "adapted": {"n": 3}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    trained = finished(tmp_path_factory.mktemp("measure"), decide="balanced", guard=False)
    with dead_embedder() as embedder:
        write_measures(trained, embedder, TRUE_SCORES)
    return trained


@pytest.fixture(scope="module")
def data(run: Trained) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.folder.report_data.read_text())
    return found


@pytest.fixture(scope="module")
def points(run: Trained) -> list[dict[str, str]]:
    with run.folder.embedding.open(newline="") as file:
        return list(csv.DictReader(file))


def predictions(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_top_level_keys_and_no_path_or_id(run: Trained, data: dict[str, Any]) -> None:
    assert set(data) == {
        "format",
        "models",
        "run",
        "data",
        "embedding",
        "divergence",
        "stages",
        "images",
        "prior",
        "predicted",
        "collapse",
        "notes",
        "method_reports",
        "training",
        "source_validation",
        "source_validation_by_site",
        "verdict",
        "forgotten",
        "selection",
        "from_scratch",
        "calibration",
        "true_scores",
    }
    assert data["models"] == ["source-only", "adapted"]
    for path in (run.folder.report_data, run.folder.embedding):
        assert CANARY not in path.read_text()
        assert ".png" not in path.read_text()


def test_what_run_json_has_is_taken_over(run: Trained, data: dict[str, Any]) -> None:
    record = json.loads(run.folder.record.read_text())
    for key in ("divergence", "prior", "collapse", "notes"):
        assert data[key] == record["figures"][key]
    assert data["method_reports"] == record["methods"]
    assert data["run"]["versions"] == record["versions"]
    assert data["run"]["timings"] == record["timings"]
    assert data["run"]["twin"] in ("trained", "cached")
    assert data["run"]["methods"]["dann"]["reference"] == "arXiv:1505.07818"
    assert data["run"]["methods"]["dann"]["package"] == "daptkit-dann"
    assert data["run"]["options"]["dann.weight"] == 1.0
    assert data["true_scores"] == TRUE_SCORES


def test_data_facts(run: Trained, data: dict[str, Any]) -> None:
    facts, labels = data["data"], run.prepared.data.source.labels
    assert labels is not None
    assert facts["source_train"] + facts["source_val"] == 100
    assert facts["patients"] == {"source": 50, "target": 30}
    assert facts["sites"] == {"ward 0": 50, "ward 1": 50}
    counts = dict.fromkeys(CLASSES, 0)
    for row in run.prepared.data.train_rows.tolist():
        counts[CLASSES[labels[row]]] += 1
    assert facts["source_counts"] == counts


def test_predicted_shares_are_those_of_the_prediction_files(
    run: Trained, data: dict[str, Any]
) -> None:
    for name, folder in (("source-only", run.folder.twin), ("adapted", run.folder)):
        rows = predictions(folder.predictions)
        for label in CLASSES:
            share = sum(row["prediction"] == label for row in rows) / len(rows)
            assert data["predicted"][name][label] == pytest.approx(share)


def test_embedding_shows_the_same_images_for_both_models(
    run: Trained, data: dict[str, Any], points: list[dict[str, str]]
) -> None:
    facts = data["embedding"]
    assert facts["kind"] == "pca"
    assert facts["why_pca"] == "The process for UMAP ended (exit status 0)."
    assert (facts["shown"], facts["of"], facts["dims"]) == (
        {"source": 100, "target": 60},
        {"source": 100, "target": 60},
        16,
    )
    before, after = ([p for p in points if p["model"] == m] for m in data["models"])
    where = [[(p["domain"], int(p["row"])) for p in panel] for panel in (before, after)]
    assert where[0] == where[1]
    assert where[0] == [("source", row) for row in range(100)] + [
        ("target", row) for row in range(60)
    ]
    table = run.prepared.data.source.images.table
    assert table.labels is not None
    assert [p["class"] for p in after if p["domain"] == "source"] == list(table.labels)
    assert {p["class_is"] for p in after if p["domain"] == "source"} == {"label"}
    said = [row["prediction"] for row in predictions(run.folder.predictions)]
    assert [p["class"] for p in after if p["domain"] == "target"] == said
    assert {p["class_is"] for p in after if p["domain"] == "target"} == {"predicted"}


def test_coordinates_belong_to_the_features(run: Trained, points: list[dict[str, str]]) -> None:
    assert run.adapted is not None
    passes = run.adapted.passes
    x = np.concatenate([passes.source_features, passes.target_features])
    variances = np.linalg.eigvalsh(np.cov(x.T))[::-1][:2]
    panel = [(float(p["x"]), float(p["y"])) for p in points if p["model"] == "adapted"]
    assert np.var(panel, axis=0, ddof=1) == pytest.approx(variances, rel=1e-3)


def test_source_validation_against_plain_loops(run: Trained, data: dict[str, Any]) -> None:
    assert run.adapted is not None
    labels, rows = run.prepared.data.source.labels, run.prepared.data.val_rows
    assert labels is not None
    logits, found = run.adapted.passes.val_logits, data["source_validation"]["adapted"]
    calibration = run.adapted.rule.calibration
    right = 0
    for z, row in zip(logits, rows.tolist(), strict=True):
        scaled = [v / calibration.temperature + b for v, b in zip(z, calibration.bias, strict=True)]
        right += scaled.index(max(scaled)) == labels[row]
    assert found["n"] == len(rows)
    assert found["accuracy"]["value"] == pytest.approx(right / len(rows))
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]
    assert (found["interval"], found["n_bootstrap"]) == ("patient", 500)


def test_validation_by_site_adds_up(data: dict[str, Any]) -> None:
    for name in data["models"]:
        sites, whole = data["source_validation_by_site"][name], data["source_validation"][name]
        assert set(sites) == {"ward 0", "ward 1"}
        assert sum(site["n"] for site in sites.values()) == whole["n"]
        right = sum(site["n"] * site["accuracy"] for site in sites.values())
        assert right / whole["n"] == pytest.approx(whole["accuracy"]["value"])


def test_calibration_covers_the_held_out_images(run: Trained, data: dict[str, Any]) -> None:
    found = data["calibration"]["source-only"]
    logits, labels = run.twin.held_out.logits, run.twin.held_out.labels
    assert (found["n"], found["cross_fitted"]) == (len(labels), False)
    for curve in (found["calibrated"], found["uncalibrated"]):
        assert sum(b["n"] for b in curve["bins"]) == len(labels)
    confidences = []
    for z in logits:
        weights = [math.exp(v - max(z)) for v in z]
        confidences.append(max(weights) / sum(weights))
    total = sum(b["n"] * b["confidence"] for b in found["uncalibrated"]["bins"])
    assert total == pytest.approx(sum(confidences))


def test_training_series_tell_losses_from_what_is_logged(
    run: Trained, data: dict[str, Any]
) -> None:
    found = data["training"]
    assert set(found["source-only"]["losses"]) == {"classification"}
    assert set(found["source-only"]["logged"]) == {"source_accuracy"}
    adapted = found["adapted"]
    assert set(adapted["losses"]) == {"classification", "dann/domain"}
    assert set(adapted["logged"]) == {"source_accuracy", "dann/discriminator_accuracy"}
    lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert adapted["step"] == [10, 20, 30, 40, 50]
    assert adapted["lr"] == [line["lr"] for line in steps]
    assert adapted["losses"]["dann/domain"] == [line["values"]["dann/domain"] for line in steps]
    assert adapted["epoch_step"] == [50]
    scores = {f"score/{name}" for name in SCORES}
    assert set(adapted["epoch"]) >= {"source_val_loss", "source_val_accuracy"} | scores


def test_a_name_that_comes_and_goes_has_gaps(tmp_path: Path) -> None:
    lines = [
        {"kind": "step", "step": 1, "lr": 0.1, "values": {"classification": 2.0}},
        {"kind": "epoch", "step": 1, "epoch": 1, "values": {"v": 1.0}},
        {"kind": "step", "step": 2, "lr": 0.2, "values": {"x/a": 1.5, "x/b": None}},
        {"kind": "epoch", "step": 2, "epoch": 2, "values": {"v": 2.0, "w": 3.0}},
    ]
    lines[2]["losses"] = ["x/a"]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training_series(path) == {
        "step": [1, 2],
        "lr": [0.1, 0.2],
        "losses": {"classification": [2.0, None], "x/a": [None, 1.5]},
        "logged": {"x/b": [None, None]},
        "epoch_step": [1, 2],
        "epoch": {"v": [1.0, 2.0], "w": [None, 3.0]},
        "unfreeze": [],
    }


@pytest.mark.parametrize("content", [None, "{"])
def test_metrics_that_cannot_be_read_are_one_clear_line(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DaptkitError, match=r"metrics\.jsonl.*Run adapt again"):
        training_series(path)


def test_options_shown_hold_no_path() -> None:
    config = AdaptConfig(
        source=("/data/a",),
        target="/data/b",
        out="/runs/1",
        pretrained_path="/weights/w.pth",
        init_from="/models/m",
        cache="/data/cache",
        reader_options=("dicom.voi=off", "raw.table=/data/t.csv"),
        model_kwargs=("pad_type=same", "rate=0.1", "checkpoint_path=x.pth", "/weights/x.pth"),
        method_options={
            "x": {
                "table": "C:\\data\\t.csv",
                "weight": 0.5,
                "bank_file": "data.pt",
                "sizes": (3, 4),
                "folders": ("data a", "data b"),
                "place": Path("data.csv"),
            }
        },
    )
    shown = options_shown(config)
    assert "/" not in json.dumps(shown)
    assert "data" not in json.dumps(shown)
    assert shown["reader_options"] == ["dicom.voi=off", "raw.table=(a path)"]
    assert shown["model_kwargs"] == [
        "pad_type=same",
        "rate=0.1",
        "checkpoint_path=(a path)",
        "(a path)",
    ]
    assert (shown["x.bank_file"], shown["x.place"], shown["x.sizes"]) == (
        "(a path)",
        "(a path)",
        [3, 4],
    )
    assert (shown["x.table"], shown["x.weight"], shown["lr"]) == ("(a path)", 0.5, 0.01)


def test_source_only_run(tmp_path: Path) -> None:
    trained = finished(tmp_path, method="none")
    with dead_embedder() as embedder:
        write_measures(trained, embedder)
    data = json.loads(trained.folder.report_data.read_text())
    assert data["models"] == ["source-only"]
    for key in ("divergence", "predicted", "training", "source_validation", "calibration"):
        assert list(data[key]) == ["source-only"], key
    assert list(data["stages"]["mmd2"]) == ["source-only"]
    assert (data["prior"]["predicted"], data["true_scores"]) == (None, None)
    assert (data["run"]["methods"], data["run"]["twin"]) == ({}, "self")


def test_what_was_forgotten_is_the_difference_of_the_scores_shown(data: dict[str, Any]) -> None:
    scores = data["source_validation"]
    before, after = (scores[m]["balanced_accuracy"]["value"] for m in ("source-only", "adapted"))
    lost = data["forgotten"]
    assert lost["value"] == pytest.approx(before - after)
    assert (lost["n"], lost["interval"]) == (scores["adapted"]["n"], scores["adapted"]["interval"])
