"""The whole job on small images, through the Python functions."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daptkit
from daptkit.config import from_toml, resolve_config
from daptkit.errors import DataError, UsageError
from daptkit.host import method_options
from fakes import tiny_config


def adapted(folder: Path, **values: Any) -> Any:
    config = tiny_config(folder, **values)
    flags = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if getattr(config, f.name) != f.default or f.name in ("source", "target", "out")
    }
    return daptkit.adapt(resolve_config(flags, None, method_options))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))


def test_run_folder(tmp_path: Path) -> None:
    result = adapted(tmp_path, method="dann+bbse", epochs=2)
    out = result.out
    for name in (
        "run.toml",
        "run.json",
        "metrics.jsonl",
        "checkpoints/last.ckpt",
        "twin/metrics.jsonl",
        "twin/model/model.json",
        "twin/predictions.csv",
        "model/model.safetensors",
        "model/model.json",
        "predictions.csv",
    ):
        assert (out / name).is_file(), name
    record = json.loads((out / "run.json").read_text())
    assert record["plugins"]["dann"]["package"] == "daptkit-dann"
    assert record["twin"] == "trained"
    assert record["figures"].keys() >= {"source_validation", "divergence", "prior", "collapse"}
    assert set(record["figures"]["source_validation"]) == {"source-only", "adapted"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"classification", "dann/domain", "dann/discriminator_accuracy"} <= set(
        lines[0]["values"]
    )
    assert [line["step"] for line in lines if line["kind"] == "epoch"] == [50, 100]
    assert record["verdict"]["delivered"] in ("adapted", "source-only")
    assert "verdict, without target labels: " in result.summary
    assert "proxy a distance" in result.summary


def test_predictions_hold_every_target_row(tmp_path: Path) -> None:
    out = adapted(tmp_path).out
    found = rows(out / "predictions.csv")
    assert len(found) == 90 + 30 + 30
    assert [row["split"] for row in found].count("test") == 30
    for row in found:
        shares = {name: float(row[f"p_{name}"]) for name in ("0", "1", "2")}
        assert sum(shares.values()) == pytest.approx(1.0, abs=1e-4)
        assert shares[row["prediction"]] == pytest.approx(max(shares.values()))


def test_predict_agrees_with_the_run(tmp_path: Path) -> None:
    out = adapted(tmp_path, method="coral").out
    daptkit.predict(out, tmp_path / "target.npz", out=tmp_path / "again.csv", device="cpu")
    assert (tmp_path / "again.csv").read_text() == (out / "predictions.csv").read_text()


def test_evaluate(tmp_path: Path) -> None:
    out = adapted(tmp_path, epochs=4).out
    scores = daptkit.evaluate(
        out, tmp_path / "source.npz", domain="source", n_bootstrap=50, device="cpu"
    )
    assert scores["n"] == 30
    accuracy = scores["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert accuracy["value"] > 0.8
    predicted = {row["path"]: row["prediction"] for row in rows(out / "predictions.csv")}
    target = daptkit.evaluate(out, tmp_path / "target.npz", n_bootstrap=0, device="cpu")
    labels = np.load(tmp_path / "target.npz")["test_labels"]
    right = [predicted[f"test/{i}"] == str(label) for i, label in enumerate(labels)]
    assert target["accuracy"]["value"] == pytest.approx(np.mean(right))


def test_target_labels_change_nothing(tmp_path: Path) -> None:
    honest = adapted(tmp_path / "a", method="dann+bbse").out
    content = dict(np.load(tmp_path / "a" / "target.npz"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "source.npz").write_bytes((tmp_path / "a" / "source.npz").read_bytes())
    for split in ("train", "val", "test"):
        content[f"{split}_labels"] = 2 - content[f"{split}_labels"]
    np.savez(tmp_path / "b" / "target.npz", **content)
    swapped = adapted(tmp_path / "b", method="dann+bbse").out
    for name in ("predictions.csv", "metrics.jsonl", "twin/metrics.jsonl"):
        assert (honest / name).read_bytes() == (swapped / name).read_bytes()


def test_twin_is_trained_once_and_equals_a_source_only_run(tmp_path: Path) -> None:
    alone = adapted(tmp_path, out=str(tmp_path / "none"))
    first = adapted(tmp_path, out=str(tmp_path / "coral"), method="coral")
    other = adapted(tmp_path, out=str(tmp_path / "seed"), method="coral", seed=1)
    assert alone.data["twin"] == "self"
    assert first.data["twin"] == "cached"
    assert other.data["twin"] == "trained"
    for name in ("predictions.csv", "metrics.jsonl", "model/model.safetensors"):
        assert (alone.out / name).read_bytes() == (first.out / "twin" / name).read_bytes()
    evaluated = daptkit.evaluate(
        first.out / "twin", tmp_path / "target.npz", n_bootstrap=0, device="cpu"
    )
    assert evaluated["n"] == 30


def test_methods_start_from_the_twins_weights_and_see_its_images(tmp_path: Path) -> None:
    weightless = adapted(
        tmp_path, method="coral", method_options={"coral": {"weight": 0.0, "mean_weight": 0.0}}
    )
    # With an alignment of weight 0 only the target's share of the forward differs.
    numbers = [
        json.loads((weightless.out / part / "metrics.jsonl").read_text().splitlines()[0])
        for part in (".", "twin")
    ]
    assert numbers[0]["values"]["classification"] == pytest.approx(
        numbers[1]["values"]["classification"], rel=1e-4
    )


def test_frozen_runs_read_the_trunk_from_the_cache(tmp_path: Path) -> None:
    trained = adapted(tmp_path, out=str(tmp_path / "first"))
    values = {
        "init_from": str(trained.out / "model"),
        "finetune": "frozen",
        "aug": "auto",
        "model": "resnet18",
        "img_size": None,
        "bottleneck": 256,
    }
    first = adapted(tmp_path, out=str(tmp_path / "a"), method="mmd", **values)
    again = adapted(tmp_path, out=str(tmp_path / "b"), method="coral", **values)
    assert first.data["data"]["trunk_features_from_cache"] == 0
    assert again.data["data"]["trunk_features_from_cache"] == 2
    assert again.data["augmentation"] == "none"
    with pytest.raises(UsageError, match="--aug digits"):
        adapted(tmp_path, out=str(tmp_path / "c"), **{**values, "aug": "digits"})


def test_frozen_needs_weights_and_something_to_align(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a trained trunk"):
        adapted(tmp_path, finetune="frozen", aug="auto")
    with pytest.raises(UsageError, match="nothing to align") as caught:
        adapted(tmp_path, finetune="frozen", aug="auto", bottleneck=0, method="dann")
    assert caught.value.exit_code == 2


def test_out_that_is_not_empty_needs_resume(tmp_path: Path) -> None:
    first = adapted(tmp_path)
    with pytest.raises(UsageError, match="not empty"):
        adapted(tmp_path)
    names = ("predictions.csv", "metrics.jsonl", "model/model.safetensors")
    before = [(first.out / name).read_bytes() for name in names]
    resumed = adapted(tmp_path, resume=True)
    assert [(resumed.out / name).read_bytes() for name in names] == before
    with pytest.raises(UsageError, match="another --lr"):
        adapted(tmp_path, resume=True, lr=0.5)


def test_a_changed_option_of_a_method_is_named(tmp_path: Path) -> None:
    given = {"method": "coral", "guard": False}
    adapted(tmp_path, **given)
    changed = {"coral": {"weight": 2.0}}
    with pytest.raises(UsageError, match=r"started with another --coral\.weight;"):
        adapted(tmp_path, **given, resume=True, method_options=changed)


def test_the_configuration_reruns_the_run(tmp_path: Path) -> None:
    first = adapted(tmp_path, method="dann", method_options={"dann": {"weight": 0.25}})
    stored = from_toml((first.out / "run.toml").read_text(), "run.toml")
    assert stored["method_options"]["dann"]["weight"] == 0.25
    config = resolve_config(
        {"out": str(tmp_path / "again")}, first.out / "run.toml", method_options
    )
    again = daptkit.adapt(config)
    for name in ("predictions.csv", "metrics.jsonl"):
        assert (first.out / name).read_bytes() == (again.out / name).read_bytes()


def test_decision_rules(tmp_path: Path) -> None:
    result = adapted(tmp_path, decide="sens=2:0.95")
    meta = json.loads((result.out / "model" / "model.json").read_text())
    assert meta["rule"]["decide"] == "sens=2:0.95"
    with pytest.raises(UsageError, match="the classes are 0, 1, 2"):
        adapted(tmp_path, out=str(tmp_path / "other"), decide="sens=4:0.95")


def test_classes_of_a_model_must_cover_the_source(tmp_path: Path) -> None:
    trained = adapted(tmp_path)
    content = dict(np.load(tmp_path / "source.npz"))
    for split in ("train", "val", "test"):
        content[f"{split}_labels"] = content[f"{split}_labels"] + 5
    np.savez(tmp_path / "other.npz", **content)
    with pytest.raises(DataError, match="5"):
        adapted(
            tmp_path,
            source=(str(tmp_path / "other.npz"),),
            out=str(tmp_path / "b"),
            init_from=str(trained.out),
        )


def test_unknown_field_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size"):
        daptkit.adapt(source="a", target="b", out=str(tmp_path / "c"), batchsize=3)


def test_class_folder_target_is_unlabelled(tmp_path: Path, two_sites: Path) -> None:
    result = adapted(
        tmp_path,
        source=(str(two_sites / "source"),),
        target=str(two_sites / "target"),
        in_chans=1,
        epochs=1,
    )
    scores = daptkit.evaluate(result.out, two_sites / "target", n_bootstrap=20, device="cpu")
    assert scores["n"] > 0
