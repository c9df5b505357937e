"""Manifests as sites write them: what the commands make of each fault, exit code and message."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from manifest_sites import (
    HEADER,
    Command,
    Rows,
    Sites,
    text_of,
    with_column,
)

Change = Callable[[Rows, Path], str | bytes]

REFUSED: dict[str, tuple[Change, str]] = {
    "no column path": (
        lambda rows, _: text_of(rows, "file,label,patient_id"),
        "has no column 'path'; its first line has: file, label, patient_id",
    ),
    "semicolons": (lambda rows, _: text_of(rows).replace(",", ";"), "separated by commas"),
    "tabs": (lambda rows, _: text_of(rows).replace(",", "\t"), "separated by commas"),
    "UTF-16": (lambda rows, _: text_of(rows).encode("utf-16"), "is not UTF-8"),
    "UTF-16 without mark": (lambda rows, _: text_of(rows).encode("utf-16-le"), "is not UTF-8"),
    "Latin-1": (
        lambda rows, _: text_of(rows).replace("neg", "n\xe9g").encode("latin-1"),
        "save it as 'CSV UTF-8'",
    ),
    "nothing": (lambda rows, _: "", "has no column 'path'"),
    "header alone": (lambda rows, _: text_of([]), "lists no images"),
    "column twice": (
        lambda rows, _: text_of([[*row, "x"] for row in rows], HEADER + ",label"),
        "has the column 'label' twice",
    ),
    "duplicate row": (lambda rows, _: text_of([*rows, rows[3]]), "in lines 5 and 42"),
    "one file by ./": (
        lambda rows, _: text_of([*rows, ["./" + rows[3][0], *rows[3][1:]]]),
        "in lines 5 and 42",
    ),
    "one file by ..": (
        lambda rows, _: text_of([*rows, ["i/../" + rows[3][0], *rows[3][1:]]]),
        "in lines 5 and 42",
    ),
    "one file by its absolute path": (
        lambda rows, folder: text_of([*rows, [str(folder / rows[3][0]), *rows[3][1:]]]),
        "in lines 5 and 42",
    ),
    "back-slashes": (
        lambda rows, _: text_of([[row[0].replace("/", "\\"), *row[1:]] for row in rows]),
        "40 of 40 files .* are missing: .* and 35 more.* with / between folders",
    ),
    "missing file": (
        lambda rows, _: text_of([*rows, ["i/gone.png", "pos", "s1"]]),
        "1 of 41 files .* are missing: 'i/gone.png'. Paths are relative to the manifest",
    ),
    "name too long": (
        lambda rows, _: text_of([*rows, ["i/" + "x" * 5000, "pos", "s1"]]),
        "1 of 41 files",
    ),
    "too few cells": (lambda rows, _: text_of([*rows, ["i/s00.png"]]), "line 42 has 1 cells"),
    "empty path": (lambda rows, _: text_of([*rows, ["", "pos", "s1"]]), "line 42 has an empty"),
    "open quote": (lambda rows, _: text_of(rows) + '"i/s00.png', "not valid CSV"),
    "frame that is no number": (
        lambda rows, _: text_of([[*row, "1.0"] for row in rows], HEADER + ",frame"),
        "line 2: frame '1.0' is not a number from 0",
    ),
    "frame of 5000 digits": (
        lambda rows, _: text_of([[*row, "9" * 5000] for row in rows], HEADER + ",frame"),
        "line 2: frame '9+' is not a number",
    ),
    "no labels": (
        lambda rows, _: text_of([[row[0], "", row[2]] for row in rows]),
        "has no labels, and the source needs them: fill column 'label'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, sites: Sites, adapt: Command) -> None:
    change, message = REFUSED[name]
    path = sites.write_text(change(sites.source, sites.folder))
    done = adapt(path)
    assert done.code == 3 and done.stdout == ""
    assert path.name in done.err and re.search(message, done.err)
    assert not (done.out / "run.toml").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["one"] * 40, "one class only, 'one'; training needs at least two"),
        (["", *["a", "b"] * 19, "b"], "1 images of the source have no label, the first is 'i/s00"),
    ],
)
def test_classes_that_cannot_be_trained(
    labels: list[str], message: str, sites: Sites, adapt: Command
) -> None:
    rows = [[row[0], label, row[2]] for row, label in zip(sites.source, labels, strict=True)]
    done = adapt(sites.write(rows))
    assert done.code == 3 and message in done.err
    assert "reading 40" not in done.err  # found before anything is decoded


ACCEPTED: dict[str, Change] = {
    "byte order mark": lambda rows, _: text_of(rows).encode("utf-8-sig"),
    "Windows lines": lambda rows, _: text_of(rows).replace("\n", "\r\n"),
    "old Macintosh lines": lambda rows, _: text_of(rows).replace("\n", "\r"),
    "blank columns": lambda rows, _: text_of([[*row, "", ""] for row in rows], HEADER + ",,"),
    "blank lines": lambda rows, _: text_of([*rows, ["", "", ""]]) + "\n\n",
    "spaces": lambda rows, _: text_of([[f" {cell} " for cell in row] for row in rows]),
    "quotes": lambda rows, _: text_of([[f'"{cell}"' for cell in row] for row in rows]),
    "own columns": lambda rows, _: text_of(
        [[*row, '"two\nlines, quoted"'] for row in rows], HEADER + ",note"
    ),
    "absolute paths": lambda rows, folder: text_of(
        [[str(folder / row[0]), *row[1:]] for row in rows]
    ),
    "paths with ..": lambda rows, folder: text_of(
        [[f"../{folder.name}/{row[0]}", *row[1:]] for row in rows]
    ),
}


def probabilities(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as file:
        return [(row["p_neg"], row["p_pos"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str, sites: Sites, plain: Path, adapt: Command) -> None:
    """What a spreadsheet adds, and where paths start, changes no prediction."""
    source, target = (
        sites.write_text(ACCEPTED[name](rows, sites.folder))
        for rows in (sites.source, sites.target)
    )
    done = adapt(source, target=target)
    assert done.code == 0
    assert done.err.splitlines()[:2] == [
        "labels of the target are ignored.",
        "reading 40 source and 20 target images",
    ]
    assert probabilities(done.out / "predictions.csv") == probabilities(plain / "predictions.csv")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("path,label,PatientID", ["column 'PatientID' of .* Did you mean 'patient_id'"]),
        ("path,label,patients", ["Did you mean 'patient_id'"]),
        ("path,label,patient_id,Split", ["column 'Split' .* Did you mean 'split'"]),
        ("path,label,patient_id,sites,name", ["column 'sites' .* Did you mean 'site'"]),
        ("path,label,patient_id,age,filename", []),
    ],
)
def test_columns_that_are_nearly_known_are_told(
    header: str, said: list[str], sites: Sites, adapt: Command
) -> None:
    width = header.count(",") + 1
    done = adapt(sites.write([[*row, "x", "y"][:width] for row in sites.source], header))
    told = [line for line in done.err.splitlines() if "is not read" in line]
    assert done.code == 0 and len(told) == len(said)
    assert all(re.search(one, line) for one, line in zip(said, told, strict=True))


def test_splits_that_nothing_uses_by_default_are_told(
    sites: Sites, plain: Path, adapt: Command, command: Command
) -> None:
    """Without a word a site that writes ``Train`` and ``Test`` would train on its test images."""
    header = HEADER + ",split"
    source = sites.write(with_column(sites.source, ["Train"] * 20 + ["Test"] * 20), header)
    done = adapt(source)
    assert done.code == 0
    assert "no split 'train', so all of its images are used (it has Test, Train)" in done.err
    assert "--source-split" in done.err
    chosen = adapt(source, options=("--source-split", "Train"))
    assert chosen.code == 0 and "no split" not in chosen.err
    one_split = sites.write(with_column(sites.target, ["test"] * 20), header)
    assert "no split" not in adapt(sites.write(sites.source), target=one_split).err
    assert [one.record()["data"]["source_train"] for one in (done, chosen)] == [32, 16]
    target = sites.write(with_column(sites.target, ["train"] * 10 + ["Test"] * 10), header)
    arguments = ("evaluate", plain, "--data", target, "--bootstrap", 0, "--json")
    all_of_it = command(*arguments)
    assert "no split 'test'" in all_of_it.err and json.loads(all_of_it.stdout)["n"] == 20
    assert json.loads(command(*arguments, "--split", "Test").stdout)["n"] == 10
    wrong = command(*arguments, "--split", "test")
    assert wrong.code == 3 and "it has Test, train, or all. Did you mean 'Test'" in wrong.err


def test_what_is_no_manifest(sites: Sites, adapt: Command, tmp_path: Path) -> None:
    for name, content, message in (
        ("book.xlsx", b"PK\3\4", "is not a folder, a .csv manifest or an .npz archive"),
        ("book.csv", b"PK\3\4\x14\0\xff", "is not UTF-8"),
        ("gone.csv", None, "does not exist"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        done = adapt(path)
        assert done.code == 3 and f"{name}' {message}" in done.err
