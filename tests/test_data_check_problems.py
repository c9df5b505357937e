"""Problems of images: each planted fault is found, and is an error if adapt refuses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from check_images import (
    class_folders,
    codes,
    good_manifest,
    halves,
    manifest,
    message,
    patients,
    picture,
    rows,
    save,
)
from daptkit.cli.main import run
from daptkit.recipes.checking import check_data


@pytest.mark.parametrize(
    ("columns", "code", "says"),
    [
        ({"label": lambda row: "a"}, "training", "one class only"),
        ({"label": lambda row: "" if row == 3 else halves(row)}, "training", "no label"),
        (
            {"label": halves, "split": lambda row: "train" if row % 2 else "test"},
            "training",
            "one class only",
        ),
        (
            {"label": halves, "patient_id": halves},
            "training",
            "no validation images can be set aside",
        ),
        (
            {
                "label": halves,
                "patient_id": lambda row: f"p{row // 2}",
                "split": lambda row: "test" if row == 0 else "train",
            },
            "patient_overlap",
            "1 patient is in more than one split of the source",
        ),
    ],
)
def test_what_adapt_refuses_is_an_error(
    tmp_path: Path, columns: dict[str, Callable[[int], str]], code: str, says: str
) -> None:
    path = manifest(tmp_path / "m.csv", rows(24, **{"patient_id": patients, **columns}))
    found = check_data(path, role="source")
    assert not found["ok"] and codes(found, "error") == {code}
    assert says in message(found, code)
    assert run(["data", "check", str(path), "--as", "source"]) == 3


@pytest.mark.parametrize(
    ("columns", "code", "says"),
    [
        ({"patient_id": lambda row: ""}, "missing_patients", "24 of 24 images"),
        ({"label": lambda row: "c" if row < 3 else halves(row)}, "rare_classes", "'c' (3)"),
        (
            {"label": lambda row: halves(row), "split": lambda row: "val" if row in (0, 2) else ""},
            "absent_classes",
            "split 'val' has no images of 'b'",
        ),
        (
            {"label": lambda row: ("Mass", "mass ", "other")[row % 3]},
            "similar_classes",
            "'Mass' and 'mass'",
        ),
        ({"label": lambda row: ("01", "1")[row % 2]}, "similar_classes", "'01' and '1'"),
        (
            {"patient_id": lambda row: {0: "07", 1: "7"}.get(row, f"p{row}")},
            "similar_patients",
            "'07' and '7'",
        ),
        ({"patient_id": lambda row: f"p{row // 2}"}, "several_labels", "12 patients"),
        (
            {
                "split": lambda row: "train" if row < 20 else "test",
                "label": lambda row: "" if row == 23 else halves(row),
            },
            "unlabelled",
            "1 image without a label",
        ),
    ],
)
def test_doubtful_data_is_a_warning(
    tmp_path: Path, columns: dict[str, Callable[[int], str]], code: str, says: str
) -> None:
    path = manifest(
        tmp_path / "m.csv", rows(24, **{"label": halves, "patient_id": patients, **columns})
    )
    found = check_data(path)
    assert found["ok"] and code in codes(found, "warning")
    assert says in message(found, code)


def test_one_patient_everywhere_is_suspect(tmp_path: Path) -> None:
    path = manifest(tmp_path / "m.csv", rows(12, patient_id=lambda row: "ANON"))
    found = check_data(path)
    assert list(found["domains"]) == ["target"] and codes(found) == {"one_patient"}


def test_many_rare_classes_may_be_patients(tmp_path: Path) -> None:
    class_folders(tmp_path, {f"PAT{n:02}": [2 * n, 2 * n + 1] for n in range(22)})
    assert "--as target" in message(check_data(tmp_path), "rare_classes")
    as_target = check_data(tmp_path, role="target")
    assert as_target["domains"]["target"]["classes"] is None
    assert "rare_classes" not in codes(as_target)


def test_images_of_other_kinds_are_noticed(tmp_path: Path) -> None:
    path = manifest(tmp_path / "m.csv", rows(20, label=halves, patient_id=patients))
    save(tmp_path / "1.png", np.full((48, 48), 7, np.uint8))
    save(tmp_path / "2.png", picture(2).astype(np.uint16) * 9)
    save(tmp_path / "3.png", np.stack([picture(3)] * 3, axis=-1))
    found = check_data(path)
    assert codes(found) == {"constant_images", "mixed_depths", "mixed_photometrics"}
    assert found["domains"]["source"]["constant"] == ["1.png"]
    assert message(found, "mixed_depths") == "mixed depths: 19 uint8, 1 uint16."


def test_channels_that_are_neither_grey_nor_colour(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (12, 20, 20, 4)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", train_images=images)
    found = check_data(tmp_path / "a.npz")
    assert "12 of 4 channels" in message(found, "channels")


def test_levels_of_the_domains_must_be_alike(tmp_path: Path) -> None:
    for folder, factor in (("source", 1), ("target", 16)):
        for seed in range(4):
            pixels = picture(seed + factor).astype(np.uint16) * factor * 16
            save(tmp_path / folder / "ab"[seed % 2] / f"{seed}.png", pixels)
    found = check_data(tmp_path / "source", target=tmp_path / "target")
    assert "differing_levels" in codes(found)


def test_two_domains(tmp_path: Path) -> None:
    good = good_manifest(tmp_path)
    for number in range(12):
        save(tmp_path / "other" / f"{number}.png", picture(5000 + number))
    target = manifest(
        tmp_path / "other" / "t.csv",
        rows(12, label=lambda row: "a", patient_id=lambda row: f"q{row}" if row else "p3"),
    )
    found = check_data(good, target=target)
    assert list(found["domains"]) == ["source", "target"]
    assert codes(found, "error") == {"patient_overlap"}
    assert "both the source and the target" in message(found, "patient_overlap")
    assert "target_labels" in codes(found, "warning")
    assert found["domains"]["target"]["classes"] is None
    command = ["data", "check", str(good), "--target", str(target)]
    assert run(command) == 3
    assert run([*command, "--allow-patient-overlap"]) == 0
