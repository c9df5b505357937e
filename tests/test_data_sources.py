"""The four forms of PATH: class folders, folders, manifests and archives."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daptkit.data import (
    DecodedImage,
    Format,
    ImageTable,
    Readers,
    class_names,
    concat_tables,
    encode_labels,
    read_table,
)
from daptkit.errors import DataError


def unread(path: Path, frame: int | None) -> DecodedImage:
    raise AssertionError("listing a folder reads no image")


NIFTI = Readers([Format(name="nifti", extensions=(".nii.gz",), read=unread)])
MAGIC = Readers(
    [Format(name="x", extensions=(".x",), read=unread, sniff=lambda start: start[:2] == b"XX")]
)


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(path)


def manifest(folder: Path, text: str | bytes, *images: str) -> Path:
    for number, name in enumerate(images):
        picture(folder / name, number)
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def archive(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def digits(n: int = 6) -> dict[str, np.ndarray]:
    images = np.arange(n * 9, dtype=np.uint8).reshape(n, 3, 3)
    return {"train_images": images, "train_labels": np.arange(n)[:, None] % 3}


def test_class_folders(tmp_path: Path) -> None:
    picture(tmp_path / "sick" / "p1" / "a.PNG")
    picture(tmp_path / "healthy" / "b.png")
    picture(tmp_path / "healthy" / ".hidden.png")
    picture(tmp_path / "__MACOSX" / "healthy" / "b.png")
    (tmp_path / "sick" / "notes.txt").write_text("x")
    lines: list[str] = []
    table = read_table(tmp_path, domain="source", labelled=True, log=lines.append)
    assert table.names == ("healthy/b.png", "sick/p1/a.PNG")
    assert table.labels == ("healthy", "sick")
    assert table.splits == ("", "") and not table.patients_known
    assert len(lines) == 1 and "1 files" in lines[0] and "1 .txt" in lines[0]


def test_split_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            picture(tmp_path / split / label / "x.png")
    table = read_table(tmp_path, domain="source", labelled=True)
    assert table.splits == ("test", "test", "train", "train")
    assert table.labels == ("a", "b", "a", "b")
    picture(tmp_path / "other" / "x.png")
    with pytest.raises(DataError, match="beside 'other'"):
        read_table(tmp_path, domain="source", labelled=True)


def test_unlabelled_folder_never_reads_labels(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "sick" / "deep" / "x.png")
    picture(tmp_path / "loose.png")
    table = read_table(tmp_path, domain="target", labelled=False)
    assert table.labels is None
    assert dict(zip(table.names, table.splits, strict=True)) == {
        "loose.png": "",
        "train/sick/deep/x.png": "train",
    }


def test_labelled_folder_without_classes(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    with pytest.raises(DataError, match="no class folders"):
        read_table(tmp_path, domain="source", labelled=True)
    picture(tmp_path / "a" / "y.png")
    lines: list[str] = []
    assert len(read_table(tmp_path, domain="source", labelled=True, log=lines.append)) == 1
    assert "1 images" in lines[0]


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    picture(tmp_path / "store" / "x.png")
    root = tmp_path / "data"
    root.mkdir()
    (root / "a").symlink_to(tmp_path / "store")
    (root / "a" / "loop").symlink_to(root)
    assert read_table(root, domain="source", labelled=True).names == ("a/x.png",)


def denied(*arguments: object, **named: object) -> bool:
    raise PermissionError(13, "Permission denied", str(arguments[0]))


def test_a_folder_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed over, it would take a class away in silence."""
    picture(tmp_path / "a" / "x.png")
    picture(tmp_path / "b" / "x.png")
    listing = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: (denied if Path(path).name == "b" else listing)(path)
    )
    with pytest.raises(DataError, match=r"cannot list '.*/b': Permission denied\. Get permission"):
        read_table(tmp_path, domain="source", labelled=True)


def test_places_without_permission_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = manifest(tmp_path, "path\na.png\n", "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", denied)
        with pytest.raises(DataError, match=r"1 of 1 files .* need permission to read"):
            read_table(path, domain="target", labelled=False)
    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(DataError, match=r"cannot read '.*list.csv' .*: Permission denied"):
        read_table(path, domain="target", labelled=False)


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "none", domain="source", labelled=True)
    with pytest.raises(DataError, match="no images"):
        read_table(tmp_path, domain="target", labelled=False)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match="not a folder"):
        read_table(tmp_path / "x.txt", domain="target", labelled=False)


def test_further_extensions(tmp_path: Path) -> None:
    (tmp_path / "x.NII.gz").write_bytes(b"x")
    table = read_table(tmp_path, domain="target", labelled=False, readers=NIFTI)
    assert table.names == ("x.NII.gz",)


def test_files_without_extension_are_sniffed(tmp_path: Path) -> None:
    for name, content in (("IM0001", b"XX1"), ("IM0002", b"YY1"), ("note.txt", b"no")):
        (tmp_path / name).write_bytes(content)
    lines: list[str] = []
    table = read_table(tmp_path, domain="target", labelled=False, log=lines.append, readers=MAGIC)
    assert table.names == ("IM0001",)
    assert lines == [
        "2 files of the target are not images and were left out: 1 no extension, 1 .txt."
    ]


def test_a_missing_reader_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"x")
    with pytest.raises(DataError, match="pip install daptkit-dicom"):
        read_table(tmp_path, domain="target", labelled=False)


def test_manifest(tmp_path: Path) -> None:
    text = (
        "path,label,patient_id,site,split,frame,age\r\n"
        "i/a.png,yes,01,S,train,,30\r\ni/b.png,no,1,S,val,0,\r\n"
    )
    path = manifest(tmp_path, b"\xef\xbb\xbf" + text.encode(), "i/a.png", "i/b.png")
    table = read_table(path, domain="source", labelled=True)
    assert table.names == ("i/a.png", "i/b.png#0")
    assert table.labels == ("yes", "no")
    assert table.patients == ("01", "1") and table.patients_known
    assert table.groups().tolist() == [0, 1]
    assert table.splits == ("train", "val")
    assert table.sites == ("S", "S")


def test_manifest_paths_are_shown_as_written(tmp_path: Path) -> None:
    picture(tmp_path / "up.png")
    picture(tmp_path / "abs.png")
    path = manifest(tmp_path / "in", f"path\n../up.png\n{tmp_path / 'abs.png'}\nx.png\n", "x.png")
    table = read_table(path, domain="target", labelled=False)
    assert table.names == ("../up.png", str(tmp_path / "abs.png"), "x.png")


def test_labels_of_the_target_are_ignored_aloud(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,label,patient_id\na.png,yes,1\n", "a.png")
    lines: list[str] = []
    assert read_table(path, domain="target", labelled=False, log=lines.append).labels is None
    assert lines == ["labels of the target are ignored."]


def test_missing_patients_count_as_one_each(tmp_path: Path) -> None:
    path = manifest(
        tmp_path, "path,patient_id\na.png,7\nb.png,\nc.png,7\n", *["a.png", "b.png", "c.png"]
    )
    table = read_table(path, domain="target", labelled=False)
    assert not table.patients_known
    assert table.groups().tolist() == [0, 1, 0]


def test_optional_columns(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        "path,study_id,manufacturer,field_strength,note\na.png,s1,M,1.5,x\nb.png,,N,,y\n",
        "a.png",
        "b.png",
    )
    table = read_table(path, domain="target", labelled=False)
    assert table.extra == {
        "study_id": ("s1", ""),
        "manufacturer": ("M", "N"),
        "field_strength": ("1.5", ""),
    }
    assert table.select([1]).extra["manufacturer"] == ("N",)
    both = concat_tables([table, read_table(path, domain="target", labelled=False)])
    assert both.extra["study_id"] == ("s1", "", "s1", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,x\n", "no column 'path'"),
        ("path;label\na.png;x\n", "separated by commas"),
        ("", "no column 'path'"),
        ("path,label\n", "lists no images"),
        ("path,label\na.png\n", "line 2 has 1 cells"),
        ("path,label\na.png,x,y\n", "line 2 has 3 cells"),
        ("path,label,label\na.png,x,y\n", "'label' twice"),
        ("path,label\na.png,x\n./a.png,y\n", "lines 2 and 3"),
        ("path,label\n,x\n", "empty path"),
        ("path,frame\na.png,-1\n", "frame '-1'"),
        ("path,label\na.png,\n", "has no labels"),
        ('path,label\na.png,"x\n', "not valid CSV"),
        (b"path,label\na.png,caf\xe9\n", "not UTF-8"),
        ("path,label\n" + "".join(f"n{i}.png,x\n" for i in range(7)), "7 of 7.*and 2 more"),
    ],
)
def test_bad_manifests(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = manifest(tmp_path, text, "a.png")
    with pytest.raises(DataError, match=message) as caught:
        read_table(path, domain="source", labelled=True)
    assert "list.csv" in str(caught.value)


def test_archive(tmp_path: Path) -> None:
    arrays = digits() | {
        "test_images": np.zeros((2, 3, 3, 3), np.uint8),
        "test_labels": np.array([10.0, 2.0]),
    }
    table = read_table(archive(tmp_path / "d.npz", **arrays), domain="source", labelled=True)
    assert table.names[:2] == ("train/0", "train/1") and table.names[-1] == "test/1"
    assert table.splits == ("train",) * 6 + ("test",) * 2
    assert table.labels == ("0", "1", "2", "0", "1", "2", "10", "2")
    assert class_names(table.labels) == ("0", "1", "2", "10")


def test_archive_of_the_target(tmp_path: Path) -> None:
    arrays = digits() | {"train_labels": np.zeros((6, 14), np.int64)}
    lines: list[str] = []
    table = read_table(
        archive(tmp_path / "d.npz", **arrays), domain="target", labelled=False, log=lines.append
    )
    assert table.labels is None
    assert lines == ["labels of the target are ignored."]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.zeros((6, 14))}, "14 labels per image"),
        ({"train_labels": np.zeros(5, np.int64)}, "for 6 images"),
        ({"train_labels": np.full(6, 0.5)}, "fractions"),
        ({"train_images": np.zeros((6, 3), np.uint8)}, "not \\(images, height"),
        ({"train_images": np.zeros((6, 3, 28, 28), np.uint8)}, "channels come last"),
        ({"train_images": np.full((6, 3, 3), "x")}, "not numbers"),
        ({"train_labels": np.array([object()] * 6)}, "not a readable"),
        ({"val_images": np.zeros((1, 3, 3), np.uint8)}, "no 'val_labels'"),
    ],
)
def test_bad_archives(tmp_path: Path, change: dict[str, np.ndarray], message: str) -> None:
    path = archive(tmp_path / "d.npz", **(digits() | change))
    with pytest.raises(DataError, match=message):
        read_table(path, domain="source", labelled=True)


def test_archives_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected keys such as 'train_images', found images"):
        read_table(archive(tmp_path / "k.npz", images=np.zeros(2)), domain="source", labelled=True)
    whole = archive(tmp_path / "d.npz", **digits()).read_bytes()
    for number, content in enumerate((b"", b"<html>", whole[: len(whole) // 2])):
        path = tmp_path / f"{number}.npz"
        path.write_bytes(content)
        with pytest.raises(DataError, match=path.name):
            read_table(path, domain="source", labelled=True)
    flipped = bytearray(whole)
    flipped[100] ^= 0xFF
    (tmp_path / "flip.npz").write_bytes(bytes(flipped))
    with pytest.raises(DataError, match="flip"):
        read_table(tmp_path / "flip.npz", domain="source", labelled=True)


def test_class_names_and_numbers() -> None:
    assert class_names(["10", "9", "-1", "", "9"]) == ("-1", "9", "10")
    assert class_names(["b", "10", "9"]) == ("10", "9", "b")
    with pytest.raises(DataError, match="one class only, 'a'"):
        class_names(["a", "a"])
    with pytest.raises(DataError, match="no labels"):
        class_names(None)


def test_encode_labels() -> None:
    def table(*labels: str) -> ImageTable:
        names = tuple(f"n{row}" for row in range(len(labels)))
        refs: tuple[()] = ()
        return ImageTable(
            domain="target", names=names, refs=refs, splits=("",) * len(names), labels=labels
        )

    numbers = encode_labels(table("b", "a", "b"), ("a", "b", "c"))
    assert numbers.tolist() == [1, 0, 1] and numbers.dtype == np.int64
    with pytest.raises(DataError, match=r"2 unknown classes: 'x', 'y'; known are a, b"):
        encode_labels(table("x", "a", "y"), ("a", "b"))
    with pytest.raises(DataError, match=r"1 images .* have no label, the first is 'n1'"):
        encode_labels(table("a", ""), ("a", "b"))


def test_real_manifests(shared_data: Path) -> None:
    path = shared_data / "data" / "pneumonia_cxr" / "nih_adult.csv"
    table = read_table(path, domain="source", labelled=True)
    assert len(table) == 1000 and table.patients_known
    assert class_names(table.labels) == ("normal", "pneumonia")
