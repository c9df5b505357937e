"""Predictions and scores per patient or study."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import daptkit
from daptkit.cli.main import run
from daptkit.data import ImageTable
from daptkit.data.refs import FileRef
from daptkit.errors import DataError, UsageError
from daptkit.recipes.aggregation import Units, find_units, unit_labels
from daptkit.recipes.inference import load_run, read_images, run_model
from daptkit.train.progress import SilentReporter
from fakes import CLASSES, drawn, tiny_config

PER_PATIENT = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("trained"))
    daptkit.adapt(config)
    return Path(config.out)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 images of 12 patients; each patient has one class, and a study of its last image."""
    folder = tmp_path_factory.mktemp("data")
    images, labels = drawn(120, 5)
    lines, taken = ["path,label,patient_id,study_id"], 0
    for label in range(3):
        for image in images[labels == label][: 4 * PER_PATIENT]:
            patient, number = divmod(taken, PER_PATIENT)
            Image.fromarray(image).save(folder / f"{taken}.png")
            study = "b" if number == PER_PATIENT - 1 else "a"
            lines.append(f"{taken}.png,{CLASSES[label]},p{patient},{study}")
            taken += 1
    assert taken == 36
    path = folder / "m.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def posteriors(trained: Path, manifest: Path) -> np.ndarray:
    loaded, rule = load_run(trained, "target")
    reporter: Any = SilentReporter()
    table, readers = read_images(
        loaded, manifest, domain="target", labelled=False, reporter=reporter
    )
    _, logits = run_model(
        loaded,
        table,
        readers,
        domain="target",
        device="cpu",
        workers=1,
        skip_unreadable=0,
        cache="off",
        reporter=reporter,
    )
    return rule.posterior(logits)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_patient_gets_the_mean_probability(trained: Path, manifest: Path, tmp_path: Path) -> None:
    out = daptkit.predict(trained, manifest, out=tmp_path / "p.csv", aggregate="patient")
    rows = rows_of(out)
    assert [row["patient_id"] for row in rows] == [f"p{n}" for n in range(12)]
    assert {row["images"] for row in rows} == {"3"}
    images = posteriors(trained, manifest)
    for number, row in enumerate(rows):
        mean = [sum(float(images[3 * number + i, k]) for i in range(3)) / 3 for k in range(3)]
        found = [float(row[f"p_{k}"]) for k in range(3)]
        assert found == pytest.approx(mean, abs=2e-6)
        assert row["prediction"] == str(int(np.argmax(mean)))
        assert float(row["confidence"]) == pytest.approx(max(mean), abs=2e-6)


def test_studies_of_two_patients_stay_apart(trained: Path, manifest: Path, tmp_path: Path) -> None:
    out = daptkit.predict(trained, manifest, out=tmp_path / "s.csv", aggregate="study")
    rows = rows_of(out)
    assert len(rows) == 24
    assert [row["images"] for row in rows[:4]] == ["2", "1", "2", "1"]


def test_scores_per_patient(
    trained: Path, manifest: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = dict(zip(CLASSES, "012", strict=True))
    text = manifest.read_text()
    for name, number in names.items():
        text = text.replace(f",{name},", f",{number},")
    labelled = manifest.with_name("labelled.csv")
    labelled.write_text(text)
    scores = daptkit.evaluate(trained, labelled, aggregate="patient", n_bootstrap=50)
    assert scores["unit"] == "patient" and scores["n"] == 12 and scores["interval"] == "patient"
    means = posteriors(trained, manifest).reshape(12, 3, 3).mean(1)
    right = float(np.mean(means.argmax(1) == np.repeat([0, 1, 2], 4)))
    assert scores["accuracy"]["value"] == pytest.approx(right)
    studies = daptkit.evaluate(trained, labelled, aggregate="study", n_bootstrap=0)
    assert studies["n"] == 24 and studies["groups"] == 12
    assert daptkit.evaluate(trained, labelled, n_bootstrap=0)["unit"] == "image"
    arguments = ["evaluate", str(trained), "--data", str(labelled), "--aggregate", "patient"]
    assert run([*arguments, "--bootstrap", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 12


def test_images_without_id_are_refused(
    trained: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = manifest.read_text().replace(",p3,", ",,")
    broken = manifest.with_name("broken.csv")
    broken.write_text(text)
    out = tmp_path / "x.csv"
    arguments = ["predict", str(trained), "--images", str(broken), "--out", str(out)]
    assert run([*arguments, "--aggregate", "patient"]) == 3
    assert "3 of 36 images have no patient_id, the first is '9.png'" in capsys.readouterr().err
    assert not out.exists()
    assert run([*arguments, "--aggregate", "ward"]) == 2


def units(*members: int) -> Units:
    names = tuple(f"u{number}" for number in range(max(members) + 1))
    return Units(kind="patient", names=names, members=np.array(members))


def test_a_patient_of_two_classes_has_no_label() -> None:
    assert unit_labels(units(0, 1, 0), np.array([1, 0, 1]), ("a", "b")).tolist() == [1, 0]
    with pytest.raises(DataError, match=r"1 of 2 have images of several .*'u0' has a, b"):
        unit_labels(units(0, 1, 0), np.array([1, 0, 0]), ("a", "b"))


def test_kinds_of_units() -> None:
    table = ImageTable(
        domain="target",
        names=("a", "b"),
        refs=(FileRef(Path("a")), FileRef(Path("b"))),
        splits=("", ""),
        patients=("1", "2"),
        extra={"study_id": ("s", "s")},
    )
    assert find_units(table, "study").names == ("s", "s")
    with pytest.raises(UsageError, match="patient or study"):
        find_units(table, "patients")
