"""Patients and classes in manifests: who may be where, what may be absent, what is never read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from manifest_sites import (
    HEADER,
    Command,
    Sites,
    with_column,
)


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
