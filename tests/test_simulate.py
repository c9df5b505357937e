"""The files of a simulated site and their truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import daptkit
from daptkit.data import read_table
from daptkit.data.decode import read_image
from daptkit.data.encode import encode_png
from daptkit.data.refs import FileRef
from daptkit.data.shifts import apply_shift
from daptkit.errors import DaptkitError, DataError, UsageError
from daptkit.recipes import simulated_site
from daptkit.recipes.simulating import SimulateResult
from daptkit.scanner import ScannerShift
from simulated import Lines, noise_image, rows_of, site, truth_of

SHIFT = {"contrast": 0.7, "gamma": 1.3, "offset": 0.1, "noise": 0.02, "bias_field": 0.1}


@pytest.fixture(scope="module")
def made(two_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> SimulateResult:
    """The source of the two sites with another scanner, fewer lesions and wrong labels."""
    return daptkit.simulate(
        two_sites / "source",
        out=tmp_path_factory.mktemp("made") / "site",
        shift=SHIFT,
        prior={"malignant": 0.1},
        redefine={"benign": ("normal", 0.5)},
        label_noise=0.2,
        seed=3,
        workers=2,
    )


def test_the_new_site_reads_as_it_is(made: SimulateResult, two_sites: Path) -> None:
    lines: list[str] = []
    table = read_table(made.out / "manifest.csv", domain="target", labelled=True, log=lines.append)
    truth, old = truth_of(made.out), read_table(two_sites / "source", domain="", labelled=True)
    assert lines == []
    assert len(table) == len(truth["images"]) == made.data["n_images"]
    assert set(table.sites or ()) == {"simulated"}
    assert table.labels == tuple(one["label_after"] for one in truth["images"])
    for ref, name, split, one in zip(
        table.refs, table.names, table.splits, truth["images"], strict=True
    ):
        row = one["source_row"]
        assert name == one["file"] == f"images/{row:06d}.png"
        assert (one["label_before"], split) == ((old.labels or ())[row], old.splits[row])
        assert isinstance(ref, FileRef)
        with Image.open(ref.path) as image:
            assert (image.mode, image.size) == ("L", (32, 32))


def test_the_truth_counts_what_is_there(made: SimulateResult) -> None:
    truth = truth_of(made.out)
    images = truth["images"]
    assert truth["shift"] == {**vars(ScannerShift()), **SHIFT}
    assert truth["asked"] == {
        "seed": 3,
        "split": "all",
        "preset": None,
        "redefine": {"benign": ["normal", 0.5]},
        "label_noise": 0.2,
    }
    kept = Counter(one["label_before"] for one in images)
    after = Counter(one["label_after"] for one in images)
    assert truth["counts"]["before"] == {"benign": 16, "malignant": 16, "normal": 16}
    assert truth["counts"]["kept"] == dict(kept)
    assert truth["counts"]["after"] == dict(after)
    assert truth["prior"]["asked"] == pytest.approx(
        {"benign": 0.45, "malignant": 0.1, "normal": 0.45}
    )
    for name, share in truth["prior"]["asked"].items():
        assert abs(kept[name] - share * len(images)) < 1
    assert truth["prior"]["after"] == {name: n / len(images) for name, n in after.items()}
    moved = [one for one in images if one["label_redefined"] != one["label_before"]]
    assert truth["redefined"] == [{"from": "benign", "to": "normal", "images": len(moved)}]
    assert len(moved) == kept["benign"] // 2
    noisy = [one for one in images if one["label_after"] != one["label_redefined"]]
    assert truth["label_noise"] == {"images": len(noisy)}
    assert len(noisy) == round(0.2 * len(images))
    assert truth["levels"] == {"8-bit": {"read": [0.0, 255.0], "written": [0.0, 255.0], "bits": 8}}
    assert made.data == {
        "manifest": str(made.out / "manifest.csv"),
        "truth": str(made.out / "truth.json"),
        "n_images": len(images),
        **{name: value for name, value in truth.items() if name != "images"},
        "asked": {**truth["asked"], "redefine": {"benign": ("normal", 0.5)}},
    }


def test_pixels_are_those_of_the_formula(made: SimulateResult, two_sites: Path) -> None:
    old = read_table(two_sites / "source", domain="", labelled=True)
    for one in truth_of(made.out)["images"][:5]:
        row = one["source_row"]
        ref = old.refs[row]
        assert isinstance(ref, FileRef)
        levels = np.asarray(Image.open(ref.path)) / 255.0
        rng = np.random.default_rng((3, 1, row))
        wanted = np.round(255 * apply_shift(levels, ScannerShift(**SHIFT), rng))
        assert np.array_equal(np.asarray(Image.open(made.out / one["file"])), wanted)


def test_neither_truth_nor_images_hold_a_path(made: SimulateResult, two_sites: Path) -> None:
    text = (made.out / "truth.json").read_text() + (made.out / "manifest.csv").read_text()
    assert str(two_sites) not in text
    assert "source/" not in text and "0000.png" not in text.replace("/000000.png", "")
    files = {p.name for p in made.out.iterdir()}
    assert files == {"images", "manifest.csv", "truth.json"}


def test_an_image_depends_on_seed_and_row_only(
    made: SimulateResult, two_sites: Path, tmp_path: Path
) -> None:
    def bytes_of(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (out / "images").iterdir()}

    source = two_sites / "source"
    whole = daptkit.simulate(source, out=tmp_path / "a", shift=SHIFT, seed=3, workers=1).out
    other = daptkit.simulate(source, out=tmp_path / "b", shift=SHIFT, seed=4, workers=1).out
    first, all_of_them, others = bytes_of(made.out), bytes_of(whole), bytes_of(other)
    assert len(all_of_them) == 48 > len(first)
    assert first.items() < all_of_them.items()
    assert not set(others.values()) & set(all_of_them.values())


def test_a_split_alone(two_sites: Path, tmp_path: Path) -> None:
    out = daptkit.simulate(two_sites / "source", out=tmp_path / "new", split="test").out
    assert {row["split"] for row in rows_of(out / "manifest.csv")} == {"test"}
    assert len(rows_of(out / "manifest.csv")) == 12
    # Without a shift the pixels are the old ones.
    old = read_table(two_sites / "source", domain="", labelled=True)
    for one in truth_of(out)["images"]:
        ref = old.refs[one["source_row"]]
        assert isinstance(ref, FileRef)
        assert np.array_equal(
            np.asarray(Image.open(out / one["file"])), np.asarray(Image.open(ref.path))
        )


def test_patients_studies_and_series_stay_and_the_scanner_does_not(tmp_path: Path) -> None:
    path = site(
        tmp_path / "old",
        [noise_image(n) for n in range(4)],
        patient_id=["01", "01", "x,y", ""],
        study_id=["s1", "s1", "s2", "s3"],
        site=["here"] * 4,
        manufacturer=["ACME"] * 4,
    )
    out = daptkit.simulate(path, out=tmp_path / "new").out
    rows = rows_of(out / "manifest.csv")
    assert list(rows[0]) == ["path", "label", "patient_id", "site", "split", "study_id"]
    assert [row["patient_id"] for row in rows] == ["01", "01", "x,y", ""]
    assert [row["study_id"] for row in rows] == ["s1", "s1", "s2", "s3"]
    assert {row["site"] for row in rows} == {"simulated"}
    assert "01" not in {str(one) for one in truth_of(out)["images"][0].values()}


def test_frames_of_a_file_of_an_unknown_patient_stay_together(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        pages = [Image.fromarray(noise_image(n)) for n in range(3)]
        pages[0].save(folder / label / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="2 unreadable images in the source"):
        daptkit.simulate(folder, out=tmp_path / "one")
    out = daptkit.simulate(folder, out=tmp_path / "new", frames="all").out
    patients = [row["patient_id"] for row in rows_of(out / "manifest.csv")]
    assert patients == ["file-0"] * 3 + ["file-1"] * 3
    assert np.array_equal(read_image(out / "images" / "000004.png").array, noise_image(1))


def test_unreadable_images_are_refused_or_counted_and_listed(tmp_path: Path) -> None:
    path = site(tmp_path / "old", [noise_image(n) for n in range(5)])
    (tmp_path / "old" / "1.png").write_text("not an image")
    unreadable = r"(?s)1 unreadable image in the source \(0 tolerated\).*'1.png': not a"
    with pytest.raises(DataError, match=unreadable):
        daptkit.simulate(path, out=tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    told = Lines()
    result = daptkit.simulate(path, out=tmp_path / "new", skip_unreadable=1, reporter=told)
    assert [line.partition(":")[0] for line in told.lines] == ["skipped 1.png"]
    truth = truth_of(result.out)
    assert [one["source_row"] for one in truth["skipped"]] == [1]
    assert "1.png" not in json.dumps(truth["skipped"])
    assert [one["source_row"] for one in truth["images"]] == [0, 2, 3, 4]
    assert truth["counts"]["after"] == {"a": 3, "b": 1}
    assert "unreadable images left out: 1" in result.summary


def test_every_image_unreadable(tmp_path: Path) -> None:
    path = site(tmp_path / "old", [noise_image(n) for n in range(2)])
    for name in ("0.png", "1.png"):
        (tmp_path / "old" / name).write_bytes(b"")
    with pytest.raises(DataError, match="2 unreadable images in the source"):
        daptkit.simulate(path, out=tmp_path / "new", skip_unreadable=9)


def test_what_is_interrupted_leaves_nothing_behind(
    tmp_path: Path, two_sites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []

    def interrupted(pixels: np.ndarray) -> bytes:
        encoded.append(1)
        if len(encoded) == 20:
            raise KeyboardInterrupt
        return encode_png(pixels)

    monkeypatch.setattr(simulated_site, "encode_png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        daptkit.simulate(two_sites / "source", out=tmp_path / "new", workers=1)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_manifest_that_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, two_sites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str) -> None:
        raise DaptkitError(f"cannot write '{path}'")

    monkeypatch.setattr(simulated_site, "atomic_write", full)
    with pytest.raises(DaptkitError, match="cannot write"):
        daptkit.simulate(two_sites / "source", out=tmp_path / "new", split="test")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_kill_in_the_middle_leaves_no_manifest(two_sites: Path, tmp_path: Path) -> None:
    victim = """
import os, signal, sys
import daptkit
from daptkit.recipes import simulated_site

write = simulated_site.write_json

def die(path, value):
    write(path, value)
    os.kill(os.getpid(), signal.SIGKILL)

simulated_site.write_json = die
daptkit.simulate(sys.argv[1], out=sys.argv[2])
"""
    out = tmp_path / "new"
    done = subprocess.run(
        [sys.executable, "-c", victim, str(two_sites / "source"), str(out)],
        env={**os.environ, "PYTHONPATH": str(Path(daptkit.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(p.name for p in out.iterdir()) == ["images", "truth.json"]
    with pytest.raises(UsageError, match="is not an empty folder"):
        daptkit.simulate(two_sites / "source", out=out)
