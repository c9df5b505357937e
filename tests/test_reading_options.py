"""Frames, windows and options of readers: every command reads images as ``adapt`` did."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from daptkit.cli.main import run
from daptkit.data import Conversion
from daptkit.model import load_model_folder
from daptkit.report.restore import restore
from daptkit.run import RunFolder
from daptkit.train.progress import SilentReporter
from fakes import CLASSES, EDGE, drawn

TINY = (
    *("--model", "daptkit_lenet", "--img-size", str(EDGE), "--in-chans", "1", "--bottleneck", "16"),
    *("--epochs", "1", "--batch-size", "8", "--aug", "none", "--no-report", "--device", "cpu"),
)
Writer = Callable[[Path, np.ndarray], None]


def stacks(number: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    """Return volumes (3, H, W) uint16 whose slices differ, and their class names."""
    images, labels = drawn(number, seed)
    deep = images.astype(np.uint16) * 16
    volumes = [np.stack([image[::-1], image, image // 2]) for image in deep]
    return volumes, [CLASSES[label] for label in labels]


def write_tiff(path: Path, volume: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), volume, photometric="minisblack")


def write_nifti(path: Path, volume: np.ndarray) -> None:
    nibabel = pytest.importorskip("nibabel")
    pytest.importorskip("daptkit_nifti")
    image = nibabel.Nifti1Image(volume.transpose(1, 0, 2).astype(np.int16), np.eye(4))
    nibabel.save(image, path.with_suffix(".nii.gz"))


def write_frames(path: Path, volume: np.ndarray) -> None:
    pytest.importorskip("daptkit_dicom")
    from dicom_files import write_dicom

    write_dicom(path, volume, bits=16, window=(500, 300))


def sites(folder: Path, write: Writer) -> list[str]:
    for site, number, seed in (("source", 24, 1), ("target", 12, 2)):
        for row, (volume, label) in enumerate(zip(*stacks(number, seed), strict=True)):
            (folder / site / label).mkdir(parents=True, exist_ok=True)
            write(folder / site / label / f"{row:02d}", volume)
    return ["--source", str(folder / "source"), "--target", str(folder / "target")]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


WAYS: dict[str, tuple[Writer, list[str]]] = {
    "pages and a window": (write_tiff, ["--frames", "1", "--window", "100:3000"]),
    "all pages": (write_tiff, ["--frames", "all"]),
    "another plane": (
        write_nifti,
        ["--frames", "middle", "--reader-options", "nifti.axis=coronal", "--window", "0:2000"],
    ),
    "a reader's window": (
        write_nifti,
        ["--frames", "middle", "--reader-options", "nifti.axis=coronal,nifti.window=200:3000"],
    ),
    "values before the window": (
        write_frames,
        ["--frames", "first", "--reader-options", "dicom.voi=off"],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_command_reads_as_adapt_did(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, options = WAYS[way]
    given = [*sites(tmp_path, write), *options, *TINY]
    out, target = tmp_path / "run", str(tmp_path / "target")
    assert run(["adapt", *given, "-m", "coral", "--out", str(out)]) == 0
    again = tmp_path / "again.csv"
    assert run(["predict", str(out), "--images", target, "--out", str(again)]) == 0
    assert again.read_text() == (out / "predictions.csv").read_text()
    rows = rows_of(again)
    assert len(rows) == (36 if "all" in options else 12)
    capsys.readouterr()
    assert run(["evaluate", str(out), "--data", target, "--bootstrap", "0"]) == 0
    right = np.mean([row["path"].split("/")[0] == row["prediction"] for row in rows])
    assert f"accuracy {right:.3f}" in " ".join(capsys.readouterr().out.split())
    restored = restore(RunFolder(out), SilentReporter(), device="cpu")
    stored = Conversion.from_json(load_model_folder(out / "model").conversion)
    assert restored.prepared.conversion == stored
    assert restored.adapted is not None
    shown = restored.adapted.rule.posterior(restored.adapted.passes.target_logits)
    wanted = [[float(row[f"p_{name}"]) for name in CLASSES] for row in rows]
    assert np.allclose(shown, wanted, atol=2e-6)


def test_another_way_of_reading_gives_other_predictions(tmp_path: Path) -> None:
    """So that the test above can fail."""
    given = sites(tmp_path, write_tiff)
    found = set()
    for number, options in enumerate(([], ["--window", "100:3000"], ["--window", "0:9000"])):
        out = tmp_path / f"{number}"
        assert run(["adapt", *given, "--frames", "1", *options, *TINY, "--out", str(out)]) == 0
        found.add((out / "predictions.csv").read_text())
    assert len(found) == 3


def test_advice_of_predict_is_what_predict_can_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``predict`` has no option for frames: its model says how images are read."""
    given = sites(tmp_path, lambda path, volume: write_tiff(path, volume[1]))
    out = tmp_path / "run"
    assert run(["adapt", *given, *TINY, "--out", str(out)]) == 0
    write_tiff(tmp_path / "target" / CLASSES[0] / "stack", stacks(1, 3)[0][0])
    target, csv_file = str(tmp_path / "target"), str(tmp_path / "x.csv")
    capsys.readouterr()
    assert run(["predict", str(out), "--images", target, "--out", csv_file]) == 3
    said = capsys.readouterr().err
    assert "3 frames; give --frames" in said and "options of 'daptkit adapt'" in said
    write_tiff(tmp_path / "target" / CLASSES[0] / "stack", np.full((4, 4), np.nan, np.float32))
    assert run(["predict", str(out), "--images", target, "--out", csv_file]) == 3
    assert "options of 'daptkit adapt'" not in capsys.readouterr().err


def test_a_window_without_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def write(path: Path, volume: np.ndarray) -> None:
        write_tiff(path, (volume[1] // 16).astype(np.uint8))

    given = [*sites(tmp_path, write), *TINY]
    for options, told in (([], False), (["--window", "0:99"], True)):
        out = str(tmp_path / f"run{told}")
        assert run(["adapt", *given, *options, "--out", out]) == 0
        assert ("warning: --window is not used" in capsys.readouterr().err) == told
    names = [tmp_path / f"run{told}" / "predictions.csv" for told in (False, True)]
    assert names[0].read_text() == names[1].read_text()


def test_a_model_that_one_starts_from_keeps_its_way_of_reading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*sites(tmp_path, write_nifti), *TINY]
    first = tmp_path / "first"
    own = ["--frames", "middle", "--window", "0:2000"]
    assert run(["adapt", *given, *own, "--out", str(first)]) == 0

    def continued(*options: str) -> tuple[int, str]:
        capsys.readouterr()
        out = str(tmp_path / "next")
        code = run(["adapt", *given, "--init-from", str(first), *options, "--out", out])
        return code, capsys.readouterr().err

    code, said = continued("--frames", "first")
    assert code == 2 and said.endswith("in another way; give --frames middle.\n")
    code, said = continued(
        *("--frames", "middle", "--reader-options", "nifti.axis=coronal,nifti.volume=0")
    )
    advice = "--reader-options nifti.axis=axial, no --reader-options nifti.volume."
    assert code == 2 and said.endswith(f"in another way; give {advice}\n")
    code, said = continued("--frames", "middle", "--window", "0:10")
    assert code == 2 and "has the window 0:2000; leave --window out" in said
    assert continued(*own)[0] == 0


@pytest.mark.parametrize("cache", ["", "images.csv"])
def test_a_cache_that_is_no_folder(
    cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("images.csv").write_text("path\n")
    given = [*sites(tmp_path, lambda path, volume: write_tiff(path, volume[1])), *TINY]
    assert run(["adapt", *given, "--cache", cache, "--out", "run"]) == 2
    assert f"--cache takes a folder or off, not '{cache}'" in capsys.readouterr().err
