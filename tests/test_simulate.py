"""``daptkit data simulate``: the files of a second site, their truth, and what users get wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import daptkit
from daptkit.cli.data_simulate import parse_prior, parse_redefinitions
from daptkit.cli.main import run
from daptkit.data import DecodedImage, read_table
from daptkit.data.decode import read_image
from daptkit.data.encode import encode_png
from daptkit.data.readers import Format, Readers
from daptkit.data.refs import FileRef
from daptkit.data.shifts import apply_shift
from daptkit.errors import DaptkitError, DataError, UsageError
from daptkit.recipes import simulated_site, simulating
from daptkit.recipes.simulating import SimulateResult
from daptkit.scanner import PRESETS, ScannerShift
from daptkit.train.progress import SilentReporter

Failing = Callable[..., str]
SHIFT = {"contrast": 0.7, "gamma": 1.3, "offset": 0.1, "noise": 0.02, "bias_field": 0.1}


class Lines(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def truth_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "truth.json").read_text(encoding="utf-8"))


def site(
    folder: Path, images: list[np.ndarray], *, labels: tuple[str, ...] = ("a", "b"), **columns: Any
) -> Path:
    """Write PNG files and a manifest whose labels alternate."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number, pixels in enumerate(images):
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
        own = {name: values[number] for name, values in columns.items()}
        rows.append({"path": f"{number}.png", "label": labels[number % len(labels)], **own})
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "m.csv"


def noise_image(seed: int, top: int = 255, shape: tuple[int, ...] = (12, 10)) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, top + 1, shape)
    return values.astype(np.uint8 if top == 255 else np.uint16)


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


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Failing:
    """Run the command, which must fail with a code and one clear message; return the message."""

    def fail(code: int, *arguments: str | Path) -> str:
        assert run(("data", "simulate", *map(str, arguments))) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        return captured.err[captured.err.index("daptkit: error: ") :]

    return fail


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


def test_deep_images_keep_their_depth_and_their_scale(tmp_path: Path) -> None:
    images = [noise_image(n, 4095, (40, 40)) for n in range(6)]
    out = daptkit.simulate(
        site(tmp_path / "old", images), out=tmp_path / "new", window="0:4095", shift={"gamma": 1.2}
    ).out
    found = read_image(out / "images" / "000002.png").array
    assert found.dtype == np.uint16
    assert len(np.unique(found)) > 250
    wanted = 4095 * (images[2] / 4095) ** 1.2
    assert found == pytest.approx(wanted, abs=0.5)
    assert truth_of(out)["levels"] == {
        "int": {"read": [0.0, 4095.0], "written": [0.0, 4095.0], "bits": 16}
    }


def test_deep_colour_and_8_bit_in_one_site(tmp_path: Path) -> None:
    images = [noise_image(0, 65535, (9, 8, 3)), noise_image(1)] * 2
    result = daptkit.simulate(
        site(tmp_path / "old", images), out=tmp_path / "new", window="0:65535"
    )
    for number, pixels in enumerate(images):
        found = read_image(result.out / "images" / f"{number:06d}.png").array
        assert found.dtype == pixels.dtype
        assert np.array_equal(found, pixels)


def test_percentiles_are_the_window_where_none_is_named(tmp_path: Path) -> None:
    images = [noise_image(n, 1000, (30, 30)) for n in range(4)]
    result = daptkit.simulate(site(tmp_path / "old", images), out=tmp_path / "new")
    low, high = truth_of(result.out)["levels"]["int"]["read"]
    assert [low, high] == pytest.approx(np.percentile(images, [0.5, 99.5]))
    found = read_image(result.out / "images" / "000000.png").array
    assert np.array_equal(found, np.round(images[0].clip(low, high)))


def test_negative_pixels_get_a_scale_of_their_own_and_the_advice_to_make_the_source_alike(
    tmp_path: Path,
) -> None:
    pixels = np.random.default_rng(0).integers(-1000, 400, (8, 6, 5)).astype(np.int16)
    labels = np.arange(8) % 2
    np.savez(tmp_path / "old.npz", train_images=pixels, train_labels=labels)
    result = daptkit.simulate(tmp_path / "old.npz", out=tmp_path / "new", window="-1000:400")
    found = read_image(result.out / "images" / "000003.png").array
    assert found == pytest.approx(65535 * (pixels[3] + 1000.0) / 1400, abs=0.5)
    assert "different pixel values for black and white" in result.summary


def test_an_inverted_plugin_format_is_turned_upright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "old"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        (folder / label / "x.ray").write_bytes(b"")
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)

    def read(path: Path, frame: int | None) -> DecodedImage:
        return DecodedImage(array=ramp, value_range=(0.0, 255.0), photometric="MONOCHROME1")

    readers = Readers([Format(name="ray", extensions=(".ray",), read=read)])
    monkeypatch.setattr(simulating, "plugin_readers", lambda log, options: readers)
    out = daptkit.simulate(folder, out=tmp_path / "new").out
    assert np.array_equal(np.asarray(Image.open(out / "images" / "000001.png")), 255 - ramp)


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


def test_the_command_tells_what_it_did(
    two_sites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert (
        run(
            (
                *("data", "simulate", str(two_sites / "source"), "--out", str(out)),
                *("--preset", "low-dose", "--noise", "0.01", "--prior", "normal=0.8"),
                *("--label-noise", "0.5", "--redefine", "benign=malignant", "--seed", "5"),
            )
        )
        == 0
    )
    captured = capsys.readouterr()
    truth = truth_of(out)
    assert truth["shift"] == {**vars(PRESETS["low-dose"]), "noise": 0.01}
    assert truth["asked"]["preset"] == "low-dose"
    assert truth["asked"]["redefine"] == {"benign": ["malignant", 1.0]}
    assert captured.out.splitlines() == [
        "20 images of a simulated site",
        "scanner: contrast 0.9, blur 0.002, noise 0.01",
        "class      before          after",
        *(
            f"{name:<9}  16 (0.333)      {n} ({n / 20:.3f})"
            for name, n in truth["counts"]["after"].items()
        ),
        "labels: 2 redefined, 10 replaced by noise",
        f"manifest: {out / 'manifest.csv'}",
        f"truth: {out / 'truth.json'}",
        "note: both sites show the same patients. For a fair comparison make the source in the"
        " same way from another split, without a shift:",
        f"  daptkit data simulate {two_sites / 'source'} --split NAME --out SOURCE",
    ]
    assert "writing images: 20 steps" in captured.err


def test_the_command_prints_json_alone(
    two_sites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    arguments = (str(two_sites / "source"), "--out", str(out), "--split", "test", "--json")
    assert run(("data", "simulate", *arguments)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["n_images"] == 12
    assert printed["shift"] == vars(ScannerShift())
    assert "images" not in printed


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ("--preset", "low-does"), "Did you mean 'low-dose'?"),
        (2, ("--contrast", "9"), "invalid value for '--contrast'"),
        (2, ("--prior", "benign"), "--prior takes CLASS=P"),
        (2, ("--prior", "benin=0.5"), "Did you mean 'benign'?"),
        (2, ("--prior", "benign=0.8", "--prior", "normal=0.5"), "sum to 1.3, not 1"),
        (2, ("--redefine", "benign"), "--redefine takes A=B or A=B:SHARE"),
        (2, ("--redefine", "benign=nromal:0.5"), "Did you mean 'normal'?"),
        (2, ("--label-noise", "1.5"), "invalid value for '--label-noise'"),
        (2, ("--window", "5"), "--window takes LOW:HIGH"),
        (2, ("--frames", "frist"), "Did you mean 'first'?"),
        (2, ("--stain", "0.3"), "a stain changes colours, and there are grey images"),
        (2, ("--preset", "other-stain"), "choose a preset without one"),
        (3, ("--split", "tets"), "Did you mean 'test'?"),
    ],
)
def test_mistakes(
    failing: Failing,
    two_sites: Path,
    tmp_path: Path,
    code: int,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    out = tmp_path / "new"
    assert message in failing(code, two_sites / "source", "--out", out, *arguments)
    assert not list(out.rglob("*"))


def test_a_path_without_labels_or_without_anything(
    failing: Failing, two_sites: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    assert "does not exist" in failing(3, tmp_path / "none", "--out", out)
    shutil.copytree(two_sites / "source" / "train" / "benign", tmp_path / "flat")
    failing(3, tmp_path / "flat", "--out", out)
    assert "--out" in failing(2, two_sites / "source")


def test_an_out_that_is_not_free(failing: Failing, two_sites: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("")
    source = two_sites / "source"
    for name in ("full", "full/note"):
        assert "is not an empty folder" in failing(2, source, "--out", tmp_path / name)
    assert "is inside" in failing(2, source, "--out", source / "new")
    assert not (source / "new").exists()


def test_a_disk_that_refuses(failing: Failing, two_sites: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in failing(1, two_sites / "source", "--out", tmp_path / "file" / "new")


def test_texts_of_priors_and_redefinitions() -> None:
    assert parse_prior(("a=0.5", "b=c=0.25")) == {"a": 0.5, "b=c": 0.25}
    assert parse_redefinitions(("a=b:0.3", "b=c", "3=4:x")) == {
        "a": ("b", 0.3),
        "b": ("c", 1.0),
        "3": ("4:x", 1.0),
    }
    for texts in (("=0.5",), ("a=x",), ("a=0.1", "a=0.2")):
        with pytest.raises(UsageError, match="--prior"):
            parse_prior(texts)
    for texts in (("a",), ("=b",), ("a=",), ("a=b", "a=c")):
        with pytest.raises(UsageError, match="--redefine"):
            parse_redefinitions(texts)
