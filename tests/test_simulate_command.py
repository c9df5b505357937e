"""``daptkit data simulate`` as a command: what it tells, and what users get wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from daptkit.cli.data_simulate import parse_prior, parse_redefinitions
from daptkit.cli.main import run
from daptkit.errors import UsageError
from daptkit.scanner import PRESETS, ScannerShift
from simulated import truth_of

Failing = Callable[..., str]


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
