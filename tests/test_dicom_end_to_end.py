"""Runs on DICOM files: the same predictions as on their PNG twins, and nothing of a header left."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import daptkit
from daptkit.cli.main import run
from daptkit.data import (
    Conversion,
    DecodedImage,
    Format,
    ImageSet,
    ImageTable,
    Readers,
    read_table,
)
from daptkit.errors import DataError
from fakes import tiny_config

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("daptkit_dicom")

from pydicom.uid import (  # noqa: E402
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from dicom_files import spanning, write_dicom  # noqa: E402

CANARY = "Zaphod-Beeblebrox"
PER_CLASS = 12
SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEG2000Lossless,
)


def kinds() -> Iterator[dict[str, Any]]:
    """Ways to store a grey image: polarity, depth, rescaling and compression."""
    for number, syntax in enumerate(cycle(SYNTAXES)):
        bits = (12, 16)[number % 2]
        yield {
            "photometric": ("MONOCHROME2", "MONOCHROME1")[(number // 2) % 2],
            "bits": bits,
            "factor": 16 if bits == 12 else 257,
            "slope": (1.0, 0.5)[(number // 3) % 2],
            "transfer_syntax": syntax,
        }


def store(path: Path, grey: np.ndarray, kind: dict[str, Any], **header: Any) -> None:
    """Write 8-bit levels such that the file's window spans 0 to 255 of them."""
    kind = dict(kind)
    factor, slope = kind.pop("factor"), kind.pop("slope")
    stored = grey.astype(np.uint16) * factor
    low, high = 0, 255 * factor
    if kind["photometric"] == "MONOCHROME1":
        stored = high - stored
    intercept = -1024 if slope != 1.0 else 0
    rescale = {"RescaleSlope": str(slope), "RescaleIntercept": str(intercept)}
    center, width = spanning(low * slope + intercept, high * slope + intercept)
    write_dicom(path, stored, window=(center, width), **rescale, **kind, **header)


@pytest.fixture(scope="module")
def twins(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals, as ``png/SITE/CLASS`` and ``dicom/SITE/CLASS`` with the same grey levels."""
    folder = tmp_path_factory.mktemp("twins")
    made = kinds()
    for site in ("nih_adult", "guangzhou_pediatric"):
        table = read_table(
            shared_data / "data/pneumonia_cxr" / site, domain="source", labelled=True
        )
        for label in sorted(set(table.labels or ())):
            rows = [row for row, name in enumerate(table.labels or ()) if name == label]
            for number, row in enumerate(rows[:PER_CLASS]):
                with Image.open(_path(table, row)) as image:
                    grey = np.asarray(image.convert("L").resize((96, 80)))
                place = folder / "png" / site / label / f"{number:03d}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(grey).save(place)
                store(folder / "dicom" / site / label / f"{number:03d}.dcm", grey, next(made))
    return folder


def _path(table: ImageTable, row: int) -> Path:
    path: Path = table.refs[row].path  # type: ignore[union-attr]
    return path


def adapted(work: Path, root: Path) -> Path:
    config = tiny_config(
        work,
        source=(str(root / "nih_adult"),),
        target=str(root / "guangzhou_pediatric"),
        img_size=32,
        in_chans=1,
        method="coral+bbse",
        out=str(work / root.name),
    )
    return daptkit.adapt(**{**vars(config), "method_options": {}}).out


def predictions(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{**row, "path": row["path"].rsplit(".", 1)[0]} for row in csv.DictReader(file)]


def test_dicom_files_give_the_predictions_of_their_png_twins(twins: Path, tmp_path: Path) -> None:
    png = adapted(tmp_path, twins / "png")
    dicom = adapted(tmp_path, twins / "dicom")
    expected = predictions(png / "predictions.csv")
    assert len(expected) == 2 * PER_CLASS
    assert predictions(dicom / "predictions.csv") == expected
    for trained, kind in ((png, "dicom"), (dicom, "png")):
        images = twins / kind / "guangzhou_pediatric"
        out = daptkit.predict(trained, images, out=tmp_path / f"{kind}.csv", device="cpu")
        assert predictions(out) == expected


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """Two sites of DICOM files whose headers, names and folders carry the canary."""
    folder = tmp_path / CANARY
    rng = np.random.default_rng(0)
    made = kinds()
    for site in ("source", "target"):
        for number in range(40):
            label = ("bright", "dark")[number % 2]
            grey = rng.integers(0, 120, (40, 40)).astype(np.uint8) + np.uint8(100 * (number % 2))
            store(
                folder / site / label / f"{CANARY}-{number}.dcm",
                grey,
                next(made),
                patient=f"{CANARY}-{site}-{number // 2}",
                PatientName=CANARY,
                InstitutionName=CANARY,
                StudyDescription=CANARY,
                ReferringPhysicianName=CANARY,
                manufacturer="Acme",
            )
    intact = folder / "target" / "dark" / f"{CANARY}-1.dcm"
    intact.with_name(f"{CANARY}-broken.dcm").write_bytes(intact.read_bytes()[:-200])
    return folder


def test_nothing_of_a_header_or_a_path_is_written(
    named: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    manifests = {}
    for site in ("source", "target"):
        manifests[site] = tmp_path / f"{site}.csv"
        arguments = ["--write-manifest", str(manifests[site]), "--skip-unreadable", "1"]
        out = tmp_path / f"{site}.json"
        assert run(["data", "check", str(named / site), *arguments, "--out", str(out)]) == 0
        rows = list(csv.DictReader(manifests[site].open(newline="")))
        assert len(rows) == 40 and len({row["patient_id"] for row in rows}) == 20
        assert not any(CANARY in row["patient_id"] for row in rows)
        assert {row["manufacturer"] for row in rows} == {"Acme"}
    capsys.readouterr()
    config = tiny_config(
        tmp_path,
        source=(str(manifests["source"]),),
        target=str(named / "target"),
        in_chans=1,
        method="coral+bbse",
        skip_unreadable=1,
        report=True,
        out=str(tmp_path / "run"),
    )
    result = daptkit.adapt(**{**vars(config), "method_options": {}})
    assert result.data["data"]["skipped_unreadable"] == 1
    files = [
        path
        for root in (result.out, tmp_path / "cache")
        for path in root.rglob("*")
        if path.is_file()
    ]
    assert {path.suffix for path in files} >= {".ckpt", ".json", ".jsonl", ".html", ".bin", ".csv"}
    leaks = {path.name for path in files if CANARY.encode() in path.read_bytes()}
    assert leaks == {"run.toml", "predictions.csv"}
    assert not any(CANARY in path.name for path in files)
    assert CANARY not in result.summary and CANARY not in str(result.data)


def test_a_reader_that_quotes_a_header_is_not_quoted(tmp_path: Path) -> None:
    """What a plugin's exception says may come from the file, so only its kind is told."""

    def read(path: Path, frame: int | None) -> DecodedImage:
        raise ValueError(f"cannot parse {CANARY} in {path}")

    (tmp_path / "a.raw").write_bytes(b"x")
    readers = Readers([Format(name="raw", extensions=(".raw",), read=read)])
    table = read_table(tmp_path, domain="target", labelled=False, readers=readers)
    with pytest.raises(DataError) as caught:
        ImageSet(table, Conversion(img_size=8, in_chans=1), readers=readers)
    assert CANARY not in str(caught.value) and "ValueError" in str(caught.value)


@pytest.mark.parametrize("option", ["dicom.voi=maybe", "dicom.window=1", "dcm.voi=off", "voi=off"])
def test_wrong_reader_options(
    option: str, twins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sites = [str(twins / "dicom" / site) for site in ("nih_adult", "guangzhou_pediatric")]
    arguments = ["adapt", "--source", sites[0], "--target", sites[1], "--out", str(tmp_path / "o")]
    assert run([*arguments, "--reader-options", option]) == 2
    assert option.split("=")[0].split(".")[0] in capsys.readouterr().err


def test_options_of_a_reader_are_stored_with_the_model(twins: Path, tmp_path: Path) -> None:
    root = twins / "dicom"
    config = tiny_config(
        tmp_path,
        source=(str(root / "nih_adult"),),
        target=str(root / "guangzhou_pediatric"),
        img_size=32,
        in_chans=1,
        reader_options=("dicom.voi=off",),
        out=str(tmp_path / "off"),
    )
    out = daptkit.adapt(**{**vars(config), "method_options": {}}).out
    text = (out / "model" / "model.json").read_text()
    assert '"voi": "off"' in text and "daptkit-dicom" in text
    daptkit.predict(out, config.target, out=tmp_path / "again.csv", device="cpu")
    assert (tmp_path / "again.csv").read_text() == (out / "predictions.csv").read_text()


def test_burned_in_text_is_refused(
    tmp_path: Path, twins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    write_dicom(target / "a.dcm", np.zeros((8, 8), np.uint16), burned_in="YES")
    source = str(twins / "png" / "nih_adult")
    arguments = ["--source", source, "--target", str(target), "--model", "daptkit_lenet"]
    assert run(["adapt", *arguments, "--img-size", "32", "--out", str(tmp_path / "o")]) == 3
    assert "--reader-options dicom.burned_in=allow" in capsys.readouterr().err


def test_listing_plugins_imports_no_decoder() -> None:
    heavy = "[m for m in ('pydicom', 'numpy') if m in sys.modules]"
    code = f"import sys, daptkit_dicom.plugin; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
