"""Rare ways in which reading goes on, stops, or says something."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import daptkit
import daptkit.recipes.inference as inference
from daptkit.cli.main import run
from daptkit.data import (
    Conversion,
    DecodedImage,
    Format,
    ImageSet,
    Readers,
    choose_frames,
    read_table,
)
from daptkit.data.decode import count_frames, read_image
from daptkit.errors import DataError
from daptkit.host import Loaded
from daptkit.plugin import ReaderSpec
from daptkit.train.plugins import _sniffer
from fakes import CLASSES, EDGE, drawn, tiny_config
from make_images import tiff

GREY = Conversion(img_size=4, in_chans=1)


def unread(path: Path, frame: int | None) -> DecodedImage:
    raise AssertionError("no image is read here")


def archive(folder: Path, images: np.ndarray) -> Path:
    np.savez(folder / "x.npz", test_images=images)
    return folder / "x.npz"


def test_arrays_whose_channels_do_not_fit_are_named(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4, 2), np.uint8)
    table = read_table(archive(tmp_path, images), domain="target", labelled=False)
    with pytest.raises(DataError, match=r"(?s)3 unreadable .*'test/0': 2 channels .*--in-chans"):
        ImageSet(table, GREY)


def test_arrays_too_large_for_memory_are_checked_all_the_same(tmp_path: Path) -> None:
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    table = read_table(archive(tmp_path, images), domain="target", labelled=False)
    found = ImageSet(table, GREY, memory_limit=0)
    assert not found.in_memory
    assert np.array_equal(found.batch([2, 0])[:, 0].numpy(), images[[2, 0]])


def test_files_without_a_readable_header_are_left_to_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("rubbish")
    (tmp_path / "b.tif").write_bytes(tiff(np.zeros((3, 4, 4), np.uint8), photometric="minisblack"))
    table = read_table(tmp_path, domain="target", labelled=False)
    chosen = choose_frames(table, "all", Readers())
    assert chosen.names == ("a.png", "b.tif#0", "b.tif#1", "b.tif#2")
    kept = ImageSet(chosen, GREY, skip_unreadable=1)
    assert [name for name, _ in kept.skipped] == ["a.png"]


def test_a_format_that_counts_no_frames_has_one(tmp_path: Path) -> None:
    readers = Readers([Format(name="raw", extensions=(".raw",), read=unread)])
    (tmp_path / "a.raw").write_bytes(b"x")
    assert count_frames(tmp_path / "a.raw", readers) == 1


def test_a_file_that_cannot_be_opened_is_not_sniffed(tmp_path: Path) -> None:
    sniffed = Format(name="raw", extensions=(), read=unread, sniff=lambda start: True)
    (tmp_path / "IM1").symlink_to(tmp_path / "gone")
    assert Readers([sniffed]).find(tmp_path / "IM1") is None


def test_a_sniff_that_raises_is_told_once(tmp_path: Path) -> None:
    def broken(start: bytes) -> bool:
        raise RuntimeError("no luck")

    lines: list[str] = []
    spec = ReaderSpec(name="x", extensions=(".x",), factory="x:read")
    loaded: Loaded[Any] = Loaded(spec=spec, package="daptkit-x", version="1.0")
    sniff = _sniffer(loaded, broken, lines.append)
    assert not sniff(b"a") and not sniff(b"b")
    (line,) = lines
    assert "daptkit-x 1.0 is not used for files without extension" in line and "no luck" in line


def test_a_manifest_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "m.csv").write_text("path\n")
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(DataError, match=r"cannot read '.*m.csv': Permission denied"):
        read_table(tmp_path / "m.csv", domain="target", labelled=False)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("alpha", ["none", "unassalpha", "assocalpha"])
def test_planes_and_alpha_of_deep_tiffs(tmp_path: Path, planes: str, alpha: str) -> None:
    """Half transparent white is half grey; premultiplied colours are already those on black."""
    colour = np.full((5, 6, 3), 60000, np.uint16)
    stored = colour
    if alpha != "none":
        opacity = np.full((5, 6, 1), 32768, np.uint16)
        stored = np.concatenate([colour, opacity], axis=2)
    options: dict[str, Any] = {} if alpha == "none" else {"extrasamples": [alpha]}
    if planes == "separate":
        stored = np.moveaxis(stored, -1, 0)
    (tmp_path / "a.tif").write_bytes(
        tiff(stored, photometric="rgb", planarconfig=planes, **options)
    )
    found = read_image(tmp_path / "a.tif")
    wanted = 60000 * 32768 / 65535 if alpha == "unassalpha" else 60000
    assert found.array.shape == (5, 6, 3) and found.array.dtype == np.uint16
    assert np.abs(found.array.astype(float) - wanted).max() <= 0.5


@pytest.mark.filterwarnings("ignore")
def test_libraries_do_not_log_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a process of its own
    whole = tiff(np.zeros((3, 8, 8), np.uint16), photometric="minisblack")
    (tmp_path / "a.tif").write_bytes(whole[:200])
    with pytest.raises(DataError):
        read_image(tmp_path / "a.tif", 0)
    assert capsys.readouterr().err == ""


def test_an_alpha_of_floats_is_refused(tmp_path: Path) -> None:
    pixels = np.ones((4, 4, 4), np.float32)
    (tmp_path / "a.tif").write_bytes(tiff(pixels, photometric="rgb", extrasamples=["unassalpha"]))
    with pytest.raises(DataError, match="an alpha channel of type float32"):
        read_image(tmp_path / "a.tif")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A trained run on class folders of images that a plugin could have read."""
    for site, number, seed in (("source", 30, 1), ("target", 12, 2)):
        for row, (image, label) in enumerate(zip(*drawn(number, seed), strict=True)):
            path = tmp_path / site / CLASSES[label] / f"{row:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    config = tiny_config(
        tmp_path,
        source=(str(tmp_path / "source"),),
        target=str(tmp_path / "target"),
        img_size=EDGE,
        in_chans=1,
    )
    daptkit.adapt(config)
    return tmp_path


def test_predict_lists_what_it_skips(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "target" / "dot" / "broken.png").write_bytes(b"")
    arguments = ["predict", str(folders / "run"), "--images", str(folders / "target"), "--out"]
    out = folders / "p.csv"
    assert run([*arguments, str(out)]) == 3 and not out.exists()
    assert "'dot/broken.png': empty file" in capsys.readouterr().err
    assert run([*arguments, str(out), "--skip-unreadable", "1"]) == 0
    assert capsys.readouterr().err == "skipped dot/broken.png: empty file\n"
    assert out.read_text() == (folders / "run" / "predictions.csv").read_text()


def test_studies_of_unknown_patients(folders: Path) -> None:
    rows = ["path,label,study_id"]
    for row, (name, label) in enumerate(
        (path.name, path.parent.name) for path in sorted((folders / "target").rglob("*.png"))
    ):
        rows.append(f"{label}/{name},{label},{label}{row // 2}")
    manifest = folders / "target" / "m.csv"
    manifest.write_text("\n".join(rows) + "\n")
    scores = daptkit.evaluate(folders / "run", manifest, aggregate="study", n_bootstrap=20)
    assert scores["interval"] == "study" and scores["groups"] == scores["n"] < 12


def test_a_reader_of_another_version_is_told(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def other(log: Any, options: Any = None) -> Readers:
        made = Format(name="raw", extensions=(".raw",), read=unread, origin="x 2.0")
        return Readers([made])

    def trained(values: Any) -> Conversion:
        used = {"raw": {"package": "x 1.0", "options": {}}}
        return replace(Conversion(img_size=EDGE, in_chans=1), readers=used)

    monkeypatch.setattr(inference, "plugin_readers", other)
    arguments = ["predict", str(folders / "run"), "--images", str(folders / "target"), "--out"]
    assert run([*arguments, str(folders / "p.csv")]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(inference.Conversion, "from_json", trained)
    assert run([*arguments, str(folders / "p.csv")]) == 0
    assert "trained on images that x 1.0 read; here x 2.0 does" in capsys.readouterr().err
