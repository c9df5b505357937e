"""``data check --write-manifest``: what is written, and that no identifier of a header is."""

from __future__ import annotations

import csv
import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from check_images import class_folders, manifest, picture, save, scan_file, scan_readers
from daptkit.cli.main import run
from daptkit.data import read_table
from daptkit.data.identity import (
    default_salt_file,
    hash_identifier,
    load_salt,
    with_identities,
)
from daptkit.errors import DaptkitError, UsageError
from daptkit.recipes import checking
from daptkit.recipes.checking import check_data

CANARY = "MUELLER^HANS-4711"


@pytest.fixture(autouse=True)
def private_config(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Path:
    """Give each test a configuration folder of its own."""
    folder: Path = tmp_path_factory.mktemp("config")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the reader of a format whose headers name patients."""
    monkeypatch.setattr(checking, "plugin_readers", lambda log, options: scan_readers())


def salt_file(path: Path, text: str = "0123456789abcdef0123456789abcdef\n") -> Path:
    path.write_text(text)
    return path


def cells(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_same_salt_same_hash() -> None:
    salt, other = b"a" * 32, b"b" * 32
    hashed = hash_identifier("patient", "4711", salt)
    assert len(hashed) == 21 and hashed[0] == "p"
    assert int(hashed[1:], 16) >= 0
    assert hash_identifier("patient", " 4711\0", salt) == hashed
    assert hash_identifier("patient", "4711", other) != hashed
    assert hash_identifier("patient", "04711", salt) != hashed
    assert hash_identifier("study", "4711", salt)[2:] != hashed[1:]
    assert hash_identifier("patient", " \0 ", salt) == ""


def test_salt_is_made_once_for_the_user_alone(private_config: Path) -> None:
    salt = load_salt()
    path = private_config / "daptkit" / "salt"
    assert path == default_salt_file()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(salt) == 64 and int(salt, 16) > 0
    assert load_salt() == salt and list(path.parent.iterdir()) == [path]


def test_those_who_start_together_share_one_salt(private_config: Path) -> None:
    together = threading.Barrier(8)

    def load(_: int) -> bytes:
        together.wait()
        return load_salt()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(load, range(8)))) == 1
    assert [path.name for path in (private_config / "daptkit").iterdir()] == ["salt"]


def test_a_salt_file_must_exist_and_be_long(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the salt .*No such file"):
        load_salt(tmp_path / "none")
    with pytest.raises(UsageError, match="has 5 bytes; at least 16"):
        load_salt(salt_file(tmp_path / "short", " abcde\n"))
    assert load_salt(salt_file(tmp_path / "salt")) == b"0123456789abcdef" * 2


def test_a_salt_that_cannot_be_made(private_config: Path) -> None:
    (private_config / "daptkit").write_text("a file")
    with pytest.raises(DaptkitError):
        load_salt()


def test_manifest_reads_like_the_folder(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "images", {"a": range(4), "b": range(4, 8)})
    class_folders(tmp_path / "split", {"train/a": [1, 2], "val/b": [3, 4]})
    for folder in (root, tmp_path / "split"):
        out = tmp_path / "lists" / f"{folder.name}.csv"
        found = check_data(folder, manifest=out)
        assert found["manifest"] == {
            "file": str(out),
            "domain": "source",
            "rows": len(cells(out)),
            "left_out": [],
        }
        before = read_table(folder, domain="source", labelled=True)
        after = read_table(out, domain="source", labelled=True)
        assert after.labels == before.labels and after.splits == before.splits
        assert [r.path.resolve() for r in after.refs] == [r.path.resolve() for r in before.refs]
    assert cells(out)[0] == {
        "path": "../split/train/a/1.png",
        "label": "a",
        "patient_id": "",
        "site": "",
        "split": "train",
    }


def test_columns_of_a_manifest_stay(tmp_path: Path, scans: None) -> None:
    listed = [
        {
            "path": f"{n}.scan",
            "label": "ab"[n % 2],
            "patient_id": f"own{n}" if n else "",
            "site": "north",
            "split": "train",
            "study_id": f"s{n}",
            "model": "M1" if n else "",
        }
        for n in range(4)
    ]
    for number in range(4):
        path = tmp_path / f"{number}.scan"
        scan_file(path, number, CANARY, series="9.9", covariates={"model": "M2"})
    out = tmp_path / "new.csv"
    check_data(manifest(tmp_path / "old.csv", listed), manifest=out)
    written = cells(out)
    for column in ("path", "label", "patient_id", "site", "split", "study_id"):
        assert [row[column] for row in written] == [row[column] for row in listed]
    assert [row["model"] for row in written] == ["M2", "M1", "M1", "M1"]
    assert len({row["series_id"] for row in written}) == 1
    assert written[0]["series_id"].startswith("se")


def test_headers_give_hashed_ids(tmp_path: Path, scans: None) -> None:
    salt = salt_file(tmp_path / "salt")
    for site in ("north", "south"):
        for number in range(4):
            patient = CANARY if number == 0 else f"{site}{number}"
            scan_file(
                tmp_path / site / f"{number}.scan",
                number if site == "north" else 100 + number,
                f" {patient}\0" if site == "south" else patient,
                study=f"1.2.{number}",
                series=f"1.2.{number}.3",
                covariates={"manufacturer": "Acme\nInc", "field_strength": 1.5},
            )
        check_data(tmp_path / site, manifest=tmp_path / f"{site}.csv", salt_file=salt)
    north, south = cells(tmp_path / "north.csv"), cells(tmp_path / "south.csv")
    assert north[0]["patient_id"] == south[0]["patient_id"]
    assert len({row["patient_id"] for row in north + south}) == 7
    assert north[0]["patient_id"] == hash_identifier("patient", CANARY, salt.read_bytes().strip())
    assert north[0]["study_id"] == south[0]["study_id"] and north[0]["series_id"].startswith("se")
    assert north[0]["manufacturer"] == "Acme Inc" and north[0]["field_strength"] == "1.5"
    assert {row["label"] for row in north} == {""}
    other = salt_file(tmp_path / "other", "x" * 40)
    check_data(tmp_path / "north", manifest=tmp_path / "again.csv", salt_file=other)
    assert {r["patient_id"] for r in cells(tmp_path / "again.csv")}.isdisjoint(
        r["patient_id"] for r in north
    )


def test_the_same_patient_is_recognised_in_both_domains(tmp_path: Path, scans: None) -> None:
    for site, first in (("a", 0), ("b", 50)):
        for number in range(6):
            patient = CANARY if number == 3 else f"{site}{number}"
            below = f"{'xy'[number % 2]}/" if site == "a" else ""
            scan_file(tmp_path / site / f"{below}{number}.scan", first + number, patient)
    found = check_data(tmp_path / "a", target=tmp_path / "b", manifest=tmp_path / "a.csv")
    (overlap,) = (p for p in found["problems"] if p["code"] == "patient_overlap")
    assert "1 patient is in both" in overlap["message"]
    plain = check_data(tmp_path / "a", target=tmp_path / "b")
    assert {p["code"] for p in plain["problems"]} >= {"missing_patients"}
    assert not any(p["code"] == "patient_overlap" for p in plain["problems"])
    assert plain["domains"]["target"]["notes"] == [
        "the headers of 6 images name a patient; --write-manifest takes them from there, hashed."
    ]


def test_no_identifier_is_written_or_printed(
    tmp_path: Path, scans: None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "export"
    for number in range(3):
        scan_file(folder / f"{number}.scan", number, CANARY, study=CANARY, series=CANARY)
    scan_file(folder / "broken.scan", 7, CANARY, broken=True)
    out, report = tmp_path / "m.csv", tmp_path / "found.json"
    command = ["data", "check", str(folder), "--out", str(report), "--skip-unreadable", "1"]
    assert run([*command, "--write-manifest", str(out)]) == 0
    assert run([*command, "--json"]) == 0
    captured = capsys.readouterr()
    for text in (captured.out, captured.err, out.read_text(), report.read_text()):
        assert CANARY not in text and "4711" not in text
    assert "broken.scan: its reader failed with ValueError" in captured.out
    assert "1 files of the target name no patient" in captured.out
    assert len(cells(out)) == 3 and all(row["patient_id"] for row in cells(out))


def test_frames_are_named(tmp_path: Path, scans: None) -> None:
    scan_file(tmp_path / "d" / "loop.scan", 0, "x", frames=3)
    scan_file(tmp_path / "d" / "one.scan", 9, "y")
    out = tmp_path / "m.csv"
    check_data(tmp_path / "d", frames="all", manifest=out)
    assert [(row["path"], row["frame"]) for row in cells(out)] == [
        ("d/loop.scan", "0"),
        ("d/loop.scan", "1"),
        ("d/loop.scan", "2"),
        ("d/one.scan", ""),
    ]
    table = read_table(out, domain="target", labelled=False)
    assert len(table) == 4 and table.patients is not None
    assert len(set(table.patients)) == 2


def test_what_is_left_out_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = class_folders(tmp_path / "images", {"": range(2)})
    (folder / "bad.png").write_text("text")
    save(folder / " space.png", picture(7))
    (folder / os.fsdecode(b"latin-\xe9.png")).write_bytes((folder / "0.png").read_bytes())
    out = folder / "m.csv"
    found = check_data(folder, manifest=out)
    reasons = {entry["name"]: entry["reason"] for entry in found["manifest"]["left_out"]}
    assert len(reasons) == 3 and reasons["bad.png"].startswith("not a readable")
    assert reasons[" space.png"] == "a name that a manifest cannot hold"
    assert "latin-\ufffd.png" in reasons
    assert found["manifest"]["rows"] == len(read_table(out, domain="t", labelled=False)) == 2
    out.unlink()
    assert run(["data", "check", str(folder), "--write-manifest", str(out)]) == 3
    assert "m.csv, 2 rows, 3 left out" in capsys.readouterr().out


def test_linked_folders(tmp_path: Path) -> None:
    class_folders(tmp_path / "far" / "images", {"": range(2)})
    (tmp_path / "far" / "lists").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far" / "lists")
    out = tmp_path / "near" / "m.csv"
    check_data(tmp_path / "far" / "images", manifest=out)
    assert len(read_table(out, domain="target", labelled=False)) == 2


def test_manifests_are_not_overwritten(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "images", {"": range(2)})
    out = tmp_path / "m.csv"
    out.write_text("path\nmine.png\n")
    assert run(["data", "check", str(folder), "--write-manifest", str(out)]) == 2
    assert out.read_text() == "path\nmine.png\n"
    with pytest.raises(UsageError, match=r"ends with \.csv"):
        check_data(folder, manifest=tmp_path / "m.txt")


def test_arrays_need_no_manifest(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(UsageError, match="needs no manifest"):
        check_data(tmp_path / "a.npz", manifest=tmp_path / "m.csv")


def test_formats_without_patients_are_left_alone(tmp_path: Path) -> None:
    table = read_table(class_folders(tmp_path, {"": [1]}), domain="target", labelled=False)
    assert with_identities(table, scan_readers(), b"s" * 32, log=print) is table
