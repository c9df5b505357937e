"""Manifests as sites write them: what the commands make of each fault, exit code and message."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from daptkit.cli.main import run
from fakes import EDGE, drawn

HEADER = "path,label,patient_id"
TINY = (
    *("--model", "daptkit_lenet", "--img-size", str(EDGE), "--in-chans", "1", "--bottleneck", "16"),
    *("--epochs", "1", "--batch-size", "8", "--aug", "none", "--no-report", "--device", "cpu"),
)
Rows = list[list[str]]
_numbers = count()


@dataclass(frozen=True)
class Sites:
    """Images of two sites in one folder, and their rows: path, label, patient."""

    folder: Path
    source: Rows
    target: Rows

    def write(self, rows: Rows, header: str = HEADER) -> Path:
        return self.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")

    def write_text(self, text: str | bytes) -> Path:
        path = self.folder / f"{next(_numbers)}.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path


@dataclass(frozen=True)
class Done:
    """What a command answered."""

    code: int
    err: str
    stdout: str
    out: Path

    def predictions(self) -> list[dict[str, str]]:
        with (self.out / "predictions.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def record(self) -> Any:
        return json.loads((self.out / "run.json").read_text())


Command = Callable[..., Done]


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    folder = tmp_path_factory.mktemp("sites")
    (folder / "i").mkdir()
    rows: dict[str, Rows] = {}
    for name, number, seed in (("s", 40, 1), ("t", 20, 2)):
        rows[name] = []
        for row, image in enumerate(drawn(number, seed)[0]):
            path = f"i/{name}{row:02d}.png"
            # Two images a patient, so that a patient has both classes.
            rows[name].append([path, ("neg", "pos")[row % 2], f"{name}{row // 2}"])
            Image.fromarray(image).save(folder / path)
    return Sites(folder, rows["s"], rows["t"])


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; whatever it says, it shows no traceback."""

    def call(*arguments: object, out: Path = tmp_path / "run") -> Done:
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err and "internal error" not in said.err
        return Done(code, said.err, said.out, out)

    return call


@pytest.fixture
def adapt(sites: Sites, tmp_path: Path, command: Command) -> Command:
    """Run ``adapt`` on manifests, each time into a new folder."""

    def call(*sources: Path, target: Path | None = None, options: tuple[str, ...] = ()) -> Done:
        out = tmp_path / f"run{next(_numbers)}"
        given = [argument for source in sources for argument in ("--source", source)]
        given += ["--target", target or sites.write(sites.target), "--out", out]
        return command("adapt", *given, *TINY, *options, out=out)

    return call


def text_of(rows: Rows, header: str = HEADER) -> str:
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def with_column(rows: Rows, values: list[str]) -> Rows:
    return [[*row, value] for row, value in zip(rows, values, strict=True)]


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


@pytest.fixture(scope="module")
def plain(sites: Sites, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on faultless manifests."""
    out = tmp_path_factory.mktemp("plain") / "run"
    places = ["--source", str(sites.write(sites.source)), "--target"]
    places += [str(sites.write(sites.target)), "--out", str(out)]
    assert run(["adapt", *places, *TINY]) == 0
    return out


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
    assert [one.record()["data"]["source_train"] for one in (done, chosen)] == [32, 16]
    target = sites.write(with_column(sites.target, ["train"] * 10 + ["Test"] * 10), header)
    arguments = ("evaluate", plain, "--data", target, "--bootstrap", 0, "--json")
    all_of_it = command(*arguments)
    assert "no split 'test'" in all_of_it.err and json.loads(all_of_it.stdout)["n"] == 20
    assert json.loads(command(*arguments, "--split", "Test").stdout)["n"] == 10
    wrong = command(*arguments, "--split", "test")
    assert wrong.code == 3 and "it has Test, train, or all. Did you mean 'Test'" in wrong.err


def train_and_val(sites: Sites) -> tuple[list[Path], Path]:
    splits = ["train", "train", "train", "val"] * 10
    return [sites.write(with_column(sites.source, splits), HEADER + ",split")], sites.write(
        sites.target
    )


def train_and_test(sites: Sites) -> tuple[list[Path], Path]:
    splits = ["train", "test"] + ["train"] * 38
    return [sites.write(with_column(sites.source, splits), HEADER + ",split")], sites.write(
        sites.target
    )


def splits_of_two_paths(sites: Sites) -> tuple[list[Path], Path]:
    header = HEADER + ",split"
    rows = [[path, label, "s0"] for path, label, _ in sites.source[30:]]
    train = sites.write(with_column(sites.source[:30], ["train"] * 30), header)
    val = sites.write(with_column(rows, ["val"] * 10), header)
    return [train, val], sites.write(sites.target)


def splits_of_the_target(sites: Sites) -> tuple[list[Path], Path]:
    splits = ["train", "test"] * 10
    target = sites.write(with_column(sites.target, splits), HEADER + ",split")
    return [sites.write(sites.source)], target


def both_domains(sites: Sites) -> tuple[list[Path], Path]:
    rows = [[path, label, patient.replace("t", "s")] for path, label, patient in sites.target]
    return [sites.write(sites.source)], sites.write(rows)


@pytest.mark.parametrize(
    ("make", "where", "patients"),
    [
        (train_and_val, "more than one split of the source", 10),
        (train_and_test, "more than one split of the source", 1),
        (splits_of_two_paths, "more than one split of the source", 1),
        (splits_of_the_target, "more than one split of the target", 10),
        (both_domains, "both the source and the target", 10),
    ],
)
def test_patients_in_two_places(
    make: Callable[[Sites], tuple[list[Path], Path]],
    where: str,
    patients: int,
    sites: Sites,
    adapt: Command,
) -> None:
    sources, target = make(sites)
    done = adapt(*sources, target=target)
    assert done.code == 3 and where in done.err and "reading" not in done.err
    assert "'i/" in done.err and "--allow-patient-overlap" in done.err
    allowed = adapt(*sources, target=target, options=("--allow-patient-overlap",))
    assert allowed.code == 0 and f"in {where}" in allowed.err
    assert allowed.record()["data"]["patient_overlap_allowed"] == {where: patients}


def test_ids_are_text(sites: Sites, adapt: Command) -> None:
    """``01`` is not ``1``, nor ``1.0``, at two sites or in two splits."""
    source = sites.write(
        [
            [*row[:2], ("01", "1")[number % 2], ("train", "val")[number % 2]]
            for number, row in enumerate(sites.source[:4])
        ]
        + [[*row, "train"] for row in sites.source[4:]],
        HEADER + ",split",
    )
    target = sites.write([[*row[:2], "1.0"] for row in sites.target])
    done = adapt(source, target=target)
    assert done.code == 0
    assert done.record()["data"]["patient_overlap_allowed"] == {}
    same = adapt(source, target=sites.write([[*row[:2], "01"] for row in sites.target]))
    assert same.code == 3 and "both the source and the target" in same.err


def test_labels_of_the_target_are_not_read(sites: Sites, plain: Path, adapt: Command) -> None:
    """Other labels, even unseen ones, change no prediction."""
    rows = [[path, "unseen", patient] for path, _, patient in sites.target]
    done = adapt(sites.write(sites.source), target=sites.write(rows))
    assert done.code == 0 and "labels of the target are ignored." in done.err
    assert (done.out / "predictions.csv").read_text() == (plain / "predictions.csv").read_text()


@pytest.mark.parametrize("word", ["unseen", "NEG"])
def test_an_unseen_class_is_refused_by_evaluate(
    word: str, sites: Sites, plain: Path, command: Command
) -> None:
    rows = [[path, label.replace("neg", word), patient] for path, label, patient in sites.target]
    done = command("evaluate", plain, "--data", sites.write(rows))
    assert done.code == 3 and done.stdout == ""
    assert f"an unknown class: '{word}'; known are neg, pos." in done.err


def test_a_class_absent_somewhere(
    sites: Sites, plain: Path, adapt: Command, command: Command
) -> None:
    header = HEADER + ",split"
    rows = [[path, label, f"p{row}"] for row, (path, label, _) in enumerate(sites.source)]

    def split_by(label: str) -> Path:
        splits = ["val" if row[1] == label and row[0] > "i/s20" else "train" for row in rows]
        return sites.write(with_column(rows, splits), header)

    done = adapt(split_by("neg"))
    assert done.code == 0 and "the source's val split lacks 1 of its classes." in done.err
    splits = ["val" if row[1] == "neg" else "train" for row in rows]
    none_left = adapt(sites.write(with_column(rows, splits), header))
    assert none_left.code == 3 and "show fewer than two classes" in none_left.err
    negative = sites.write([row for row in sites.target if row[1] == "neg"])
    scores = command("evaluate", plain, "--data", negative, "--bootstrap", 0, "--json")
    assert scores.code == 0 and json.loads(scores.stdout)["absent"] == ["pos"]


@pytest.mark.parametrize("unknown", [20, 1])
def test_missing_patients_are_a_loud_warning(
    unknown: int, sites: Sites, plain: Path, adapt: Command, command: Command
) -> None:
    """And every interval says that it is image-level."""
    rows = [
        [path, label, "" if number < unknown else patient]
        for number, (path, label, patient) in enumerate(sites.target)
    ]
    target = sites.write(rows)
    warning = f"warning: {unknown} of 20 images of the target have no patient_id"
    done = adapt(sites.write(sites.source), target=target)
    assert done.code == 0 and warning in done.err and "image-level" in done.err
    arguments = ("evaluate", plain, "--bootstrap", 20, "--json", "--data")
    scored = command(*arguments, target)
    assert warning in scored.err and json.loads(scored.stdout)["interval"] == "image"
    known = command(*arguments, sites.write(sites.target))
    assert known.err == "" and json.loads(known.stdout)["interval"] == "patient"


def test_one_patient_cannot_be_held_out(sites: Sites, adapt: Command) -> None:
    done = adapt(sites.write([[*row[:2], "s"] for row in sites.source]))
    assert done.code == 3 and "Add patients, or a split 'val'" in done.err


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
