"""``plugins new``: what it writes, installed, passes its own tests and the checks of its kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from daptkit.cli.main import run
from daptkit.errors import UsageError
from daptkit.host.validate import OWN_SCORES
from daptkit.scaffold import new_plugin
from daptkit.scaffold.write import KINDS, _bound
from wheels import build_wheel, unpack_wheel

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_package_of_each_kind_passes_its_tests(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is in the test extra")
    site = tmp_path / "site"
    site.mkdir()
    folders = []
    for kind in KINDS:
        folder = tmp_path / f"new-{kind}"
        new_plugin(f"my-{kind}", kind=kind, out=folder)
        unpack_wheel(build_wheel(folder, tmp_path), site)
        folders.append(folder)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(site), *filter(None, sys.path)]),
        "DAPTKIT_CACHE": str(tmp_path / "cache"),
    }
    options = ("-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-rs")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"{folder}/tests" for folder in folders)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    assert "8 skipped" in done.stdout  # the checks that are for methods of other kinds
    listed = subprocess.run(
        [sys.executable, "-m", "daptkit", "plugins", "list", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    status = {(p["kind"], p["name"]): p["status"] for p in json.loads(listed.stdout)}
    assert {status[kind, f"my-{kind}"] for kind in KINDS} == {"ok"}
    lint = ("--config", str(ROOT / "pyproject.toml"))
    rules = ("check", *lint, "--ignore", "D103,I001")  # of the host's: tests and import order
    for command in (rules, ("format", "--check", *lint)):
        lines = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *map(str, folders)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert lines.returncode == 0, lines.stdout


def test_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["plugins", "new", "two_words", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    folder = tmp_path / "daptkit-two-words"
    assert written["folder"] == "daptkit-two-words"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        ".github/workflows/tests.yml",
        ".gitignore",
        "README.md",
        "pyproject.toml",
        "src/daptkit_two_words/__init__.py",
        "src/daptkit_two_words/method.py",
        "src/daptkit_two_words/plugin.py",
        "src/daptkit_two_words/py.typed",
        "tests/test_two_words.py",
    ]
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "daptkit-two-words"
    assert project["entry-points"] == {"daptkit": {"two_words": "daptkit_two_words.plugin"}}
    assert project["dependencies"] == ["daptkit>=0.1,<0.2"]
    assert "daptkit plugins check two_words" in (folder / ".github/workflows/tests.yml").read_text()
    assert not [p for p in folder.rglob("*") if p.is_file() and "%%" in p.read_text()]
    assert run(["plugins", "new", "other", "--kind", "reader", "--out", "here"]) == 0
    assert "cd here && pip install" in capsys.readouterr().out
    group = tomllib.loads(Path("here/pyproject.toml").read_text())["project"]["entry-points"]
    assert group == {"daptkit.readers": {"other": "daptkit_other.plugin"}}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["coral"], "the name 'coral' is taken by daptkit-coral 0.1.0"),
        (["none"], "is not allowed"),
        (["a b"], "is not allowed"),
        (["Mine"], "would not make a package"),
        (["mine-"], "would not make a package"),
        (["9a"], "is not allowed: a letter first"),
        *(
            (["--kind", "score", name], f"the name '{name}' is daptkit's own")
            for name in sorted(OWN_SCORES)
        ),
        (["resnet18", "--kind", "model"], "the name 'resnet18' is that of a model of timm, which"),
        (["daptkit_lenet", "--kind", "model"], "'daptkit_lenet' is that of a model of daptkit,"),
        (["mine", "--kind", "methods"], "is not one of"),
        (["mine", "--out", "full"], "'full' is not empty"),
        (["mine", "--out", "file"], "'file' is a file"),
    ],
)
def test_mistakes(
    failing: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    (tmp_path / "file").touch()
    assert reason in failing(2, "plugins", "new", *arguments)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "kept"]


def test_names_are_taken_within_a_kind_only(tmp_path: Path) -> None:
    assert new_plugin("auto", kind="model", out=tmp_path / "model").kind == "model"
    assert new_plugin("resnet18", kind="score", out=tmp_path / "score").kind == "score"


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(UsageError, match="Did you mean 'method'"):
        new_plugin("mine", kind="metod")


@pytest.mark.parametrize(
    ("version", "bound"), [("0.1.0", ">=0.1,<0.2"), ("0.9", ">=0.9,<0.10"), ("1.4.2", ">=1.4,<2")]
)
def test_the_bound_keeps_the_contract(version: str, bound: str) -> None:
    assert _bound(version) == bound


def test_the_command_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from daptkit.cli.main import run; run(['plugins', 'new', 'mine']);"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
