"""Patients where no patient may be twice, and those who are not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import daptkit
from daptkit.data import ImageTable, find_overlaps, refuse_overlap, warn_unknown_patients
from daptkit.data.refs import FileRef
from daptkit.errors import DataError
from fakes import CLASSES, EDGE, drawn, tiny_config


def table(domain: str, patients: str, splits: str = "") -> ImageTable:
    """One image a letter: its patient (``-`` for unknown) and its split."""
    names = tuple(f"{domain}{row}.png" for row in range(len(patients)))
    return ImageTable(
        domain=domain,
        names=names,
        refs=tuple(FileRef(Path(name)) for name in names),
        splits=tuple(splits) if splits else ("",) * len(names),
        patients=tuple("" if letter == "-" else letter for letter in patients),
    )


def test_patients_in_two_splits_are_refused() -> None:
    with pytest.raises(DataError, match=r"^1 patient is in more than one split of the source"):
        refuse_overlap(find_overlaps([table("source", "aab", "tvv")], None))
    assert not find_overlaps([table("source", "aab", "ttv")], None)
    assert not find_overlaps([table("source", "--", "tv")], None)


def test_frames_of_a_file_are_of_one_patient() -> None:
    refs = (FileRef(Path("v"), 0), FileRef(Path("v"), 1), FileRef(Path("w"), 0))
    one = replace(table("source", "---", "ttv"), refs=refs)
    assert not find_overlaps([one], None)
    (overlap,) = find_overlaps([replace(one, splits=("t", "v", "v"))], None)
    assert overlap.patients == 1 and overlap.examples == (("source0.png", "source1.png"),)


def test_splits_of_several_paths_are_held_together() -> None:
    train, val = table("source", "ab", "tt"), table("source", "bc", "vv")
    (overlap,) = find_overlaps([train, val], None)
    assert overlap.where == "more than one split of the source" and overlap.patients == 1
    # Where every PATH has a site of its own, ids are those of the site.
    apart = [replace(train, sites=("A", "A")), replace(val, sites=("B", "B"))]
    assert not find_overlaps(apart, None)


def test_patients_at_both_sites_are_refused() -> None:
    source, target = table("source", "abc"), table("target", "xca")
    (overlap,) = find_overlaps([source], target)
    assert str(overlap).startswith("2 patients are in both the source and the target")
    assert "'source0.png' and 'target2.png'" in str(overlap)
    # Of several PATHs each patient is counted once.
    (both,) = find_overlaps([source, table("source", "cx"), source], target)
    assert both.patients == 3
    # A site of its own makes no other patient of an equal id.
    named = replace(source, sites=("A",) * 3)
    assert find_overlaps([named], replace(target, sites=("B",) * 3)) == [overlap]
    assert not find_overlaps([table("source", "--")], table("target", "--"))
    with pytest.raises(DataError, match="--allow-patient-overlap"):
        refuse_overlap(
            find_overlaps([table("source", "x"), table("source", "a")], table("target", "a"))
        )


def test_an_id_is_text() -> None:
    one = replace(table("source", "a"), patients=("01",))
    assert not find_overlaps([one], replace(table("target", "a"), patients=("1",)))


def test_unknown_patients_are_told() -> None:
    lines: list[str] = []
    warn_unknown_patients(table("target", "a--"), lines.append)
    assert "2 of 3 images of the target have no patient_id" in lines[0]
    warn_unknown_patients(replace(table("target", "ab"), patients=None), lines.append)
    assert "2 of 2" in lines[1] and "image-level" in lines[1]
    warn_unknown_patients(table("target", "ab"), lines.append)
    assert len(lines) == 2


def manifest(folder: Path, name: str, patients: list[str], seed: int) -> Path:
    from PIL import Image

    images, labels = drawn(len(patients), seed)
    lines = ["path,label,patient_id"]
    for row, (image, label, patient) in enumerate(zip(images, labels, patients, strict=True)):
        Image.fromarray(image).save(folder / f"{name}{row}.png")
        lines.append(f"{name}{row}.png,{CLASSES[label]},{patient}")
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_adapt_refuses_and_records_what_was_allowed(tmp_path: Path) -> None:
    source = manifest(tmp_path, "s", [f"p{row}" for row in range(40)], 1)
    target = manifest(tmp_path, "t", ["p3", *(f"q{row}" for row in range(19))], 2)
    config = tiny_config(
        tmp_path, source=(str(source),), target=str(target), img_size=EDGE, in_chans=1
    )
    with pytest.raises(DataError, match="1 patient is in both the source and the target"):
        daptkit.adapt(config)
    assert not Path(config.out, "run.toml").exists()
    result = daptkit.adapt(replace(config, allow_patient_overlap=True))
    allowed = result.data["data"]["patient_overlap_allowed"]
    assert allowed == {"both the source and the target": 1}
    assert "s3.png" not in str(result.data) and "p3" not in str(result.data)
