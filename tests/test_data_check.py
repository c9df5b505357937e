"""``daptkit data check``: counts, levels, unreadable images, exit codes, text and JSON."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from check_images import (
    class_folders,
    codes,
    good_manifest,
    halves,
    manifest,
    patients,
    picture,
    rows,
    save,
    scan_file,
    scan_readers,
)
from daptkit.cli.main import run
from daptkit.errors import DataError, UsageError
from daptkit.recipes import checking
from daptkit.recipes.checking import check_data


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return good_manifest(tmp_path)


def test_good_data_has_no_problem(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(good)]) == 0
    captured = capsys.readouterr()
    assert "adapt would take this data (errors: 0, warnings: 0)." in captured.out
    for text in ("source:", "24, all readable", "48 x 48 (24)", "uint8 grey", "equal images: no"):
        assert text in captured.out
    assert "reading images" in captured.err and "reading images" not in captured.out


def test_counts(tmp_path: Path) -> None:
    path = manifest(
        tmp_path / "m.csv",
        rows(
            40,
            label=halves,
            patient_id=lambda row: f"p{row // 2}" if row < 30 else "",
            site=lambda row: "north" if row < 10 else "",
            split=lambda row: "train" if row < 30 else "",
            manufacturer=lambda row: "Acme",
        ),
    )
    save(tmp_path / "0.png", np.stack([picture(0, 32)] * 3, axis=-1))
    summary = check_data(path)["domains"]["source"]
    assert summary["images"] == summary["readable"] == 40
    assert summary["classes"] == {"a": 20, "b": 20}
    assert summary["splits"] == {"train": 30}
    assert summary["classes_by_split"] == {"a": {"": 5, "train": 15}, "b": {"": 5, "train": 15}}
    assert summary["sites"] == {"north": 10}
    assert summary["patients"] == {"known": 15, "images_without": 10, "most_images": 2}
    assert summary["sizes"] == [
        {"width": 48, "height": 48, "images": 39},
        {"width": 32, "height": 32, "images": 1},
    ]
    assert [(p["channels"], p["images"]) for p in summary["pixels"]] == [(1, 39), (3, 1)]
    assert summary["covariates"] == {"manufacturer": {"Acme": 40}}
    assert any("have no split" in note for note in summary["notes"])


def test_levels_are_those_of_all_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    deep = [rng.integers(0, 4000, (40, 30)).astype(np.uint16) for _ in range(6)]
    deep[2][5, 7] = 4095
    for number, pixels in enumerate(deep):
        tifffile.imwrite(tmp_path / f"{number}.tif", pixels)
    (summary,) = check_data(tmp_path)["domains"].values()
    levels = summary["levels"]["uint16"]
    every = np.concatenate([pixels.reshape(-1) for pixels in deep])
    assert levels["min"] == every.min() and levels["max"] == 4095
    for name, percent in (("p1", 1), ("p50", 50), ("p99", 99)):
        assert levels[name] == pytest.approx(np.percentile(every, percent), abs=1)
    (pixels,) = summary["pixels"]
    assert (pixels["dtype"], pixels["bits"], pixels["photometric"]) == ("uint16", 12, "MONOCHROME2")


def test_unreadable_images(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (good.parent / "3.png").write_text("text")
    (good.parent / "4.png").write_bytes(b"")
    assert run(["data", "check", str(good)]) == 3
    out = capsys.readouterr().out
    assert "3.png: not a readable PNG" in out and "4.png: empty file" in out
    assert "24, 22 readable" in out and "adapt would refuse" in out
    assert run(["data", "check", str(good), "--skip-unreadable", "1"]) == 3
    assert run(["data", "check", str(good), "--skip-unreadable", "2"]) == 0
    found = check_data(good, skip_unreadable=2)
    assert codes(found, "warning") >= {"unreadable"} and found["ok"]
    assert found["domains"]["source"]["unreadable"][1] == {
        "name": "4.png",
        "reason": "empty file",
    }


def test_nothing_readable(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_text("text")
    found = check_data(tmp_path, skip_unreadable=9)
    assert codes(found, "error") == {"all_unreadable"}


def test_what_cannot_be_listed_is_a_data_error(tmp_path: Path, good: Path) -> None:
    (good.parent / "5.png").unlink()
    for path, says in (
        (good, "1 of 24 files of .* are missing: '5.png'"),
        (tmp_path / "nowhere", "does not exist"),
    ):
        with pytest.raises(DataError, match=says):
            check_data(path)
        assert run(["data", "check", str(path)]) == 3
    good.write_bytes("path\nä.png\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        check_data(good)


def test_the_role_follows_the_labels(tmp_path: Path) -> None:
    labelled = class_folders(tmp_path / "c", {"a": range(3), "b": range(3, 6)})
    flat = class_folders(tmp_path / "f", {"": range(3)})
    split = class_folders(tmp_path / "s", {"train": range(3), "test": range(3, 6)})
    np.savez(tmp_path / "a.npz", train_images=np.zeros((2, 4, 4)), train_labels=[0, 1])
    np.savez(tmp_path / "b.npz", train_images=np.zeros((2, 4, 4)))
    empty = manifest(tmp_path / "m.csv", rows(2, label=lambda row: ""))
    for path, role in (
        (labelled, "source"),
        (flat, "target"),
        (split, "target"),
        (tmp_path / "a.npz", "source"),
        (tmp_path / "b.npz", "target"),
        (empty, "target"),
    ):
        assert list(check_data(path)["domains"]) == [role], path
    with pytest.raises(DataError, match="has no labels"):
        check_data(empty, role="source")


def test_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "plugin_readers", lambda log, options: scan_readers())
    scan_file(tmp_path / "loop.scan", 0, frames=3)
    without = check_data(tmp_path, frames="all")["domains"]["target"]
    assert without["images"] == 3 and without["frames"] == [{"frames": 3, "images": 3}]
    assert check_data(tmp_path, frames="first")["domains"]["target"]["images"] == 1
    with pytest.raises(UsageError, match="--frames is"):
        check_data(tmp_path, frames="frist")


def test_json_and_out(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "found.json"
    assert run(["data", "check", str(good), "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text()) == json.loads(json.dumps(check_data(good)))


def test_json_keys_stay(good: Path) -> None:
    save(good.parent / "1.png", picture(1000))
    found = check_data(good)
    assert list(found) == ["format", "ok", "domains", "duplicates", "problems", "manifest"]
    assert found["format"] == 1
    assert list(found["domains"]["source"]) == [
        "path",
        "images",
        "readable",
        "unreadable",
        "classes",
        "splits",
        "classes_by_split",
        "sites",
        "patients",
        "sizes",
        "pixels",
        "frames",
        "levels",
        "constant",
        "covariates",
        "notes",
    ]
    assert list(found["duplicates"]) == ["differing_bits", "exact", "near"]
    assert list(found["duplicates"]["exact"][0]) == [
        "images",
        "across_domains",
        "across_splits",
        "conflicting_labels",
        "one_patient",
    ]
    assert all(list(p) == ["level", "code", "domain", "message"] for p in found["problems"])


def test_long_lists_are_cut_in_the_text_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path / "m.csv", rows(20, label=halves, patient_id=patients))
    for number in range(9):
        (tmp_path / f"{number}.png").write_text("text")
    assert run(["data", "check", str(path)]) == 3
    out = capsys.readouterr().out
    assert "4.png: not" in out and "5.png" not in out and "and 4 more" in out
    assert len(check_data(path)["domains"]["source"]["unreadable"]) == 9


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"role": "both"}, "--as is one of"),
        ({"role": "target", "target": "x"}, "leave out --as target"),
        ({"salt_file": "x"}, "--salt-file"),
        ({"reader_options": ["nope.x=1"]}, "no reader 'nope'"),
    ],
)
def test_options_that_cannot_work(good: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_data(good, **options)


def test_every_number_type_is_read_without_a_warning(tmp_path: Path) -> None:
    save(tmp_path / "uint8.png", picture(3))
    for dtype in ("int32", "float32", "float64"):
        tifffile.imwrite(tmp_path / f"{dtype}.tif", (picture(3) - 60.0).astype(dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = check_data(tmp_path)["domains"]["target"]
    assert {pixels["dtype"]: pixels["bits"] for pixels in summary["pixels"]} == {
        "uint8": 8,
        "int32": 9,
        "float32": None,
        "float64": None,
    }
