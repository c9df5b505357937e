"""The examples, run as their READMEs say, smaller only by options that those READMEs name."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daptkit.cli.main import run
from wheels import build_wheel, unpack_wheel

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PAGES = sorted(EXAMPLES.glob("*/README.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [block for kind, block in BLOCK.findall(text) if kind == language]


def commands(page: Path) -> list[str]:
    """Return the command lines of a page, in order."""
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line]


def smaller(line: str, page: Path) -> list[str]:
    """Return the words of a command with the options that its page gives to try it quickly.

    The page names options to draw fewer images first, then those of a shorter run.
    """
    text = page.read_text(encoding="utf-8")
    (hint,) = [part for part in text.split("\n\n") if "quickly" in part]
    drawing, running = re.findall(r"`(--[^`]+)`", hint)
    words = shlex.split(line)
    if "draw_hospitals.py" in line:
        return words + drawing.split()
    runs = {"adapt", "compare"} & set(words) and "--help" not in words
    runs = runs or "compare_seeds.py" in line
    return words + running.split() if runs else words


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that looks like the root of a checkout to the commands; packages go to ``site``."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / "build").mkdir()
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] in ("daptkit_mcc", "daptkit_mine")]:
        del sys.modules[name]


def execute(line: str, page: Path) -> None:
    """Run one command line of a README, in this process where that is the same."""
    words = smaller(line, page)
    if words[0] == "daptkit":
        assert run(words[1:]) == 0, line
    elif words[:1] == ["python"]:
        run_script(words[1:])
    elif words[:3] == ["pip", "install", "-e"]:
        install(Path(words[3]))
    elif words[0] == "pytest":
        in_a_shell(f"{shlex.quote(sys.executable)} -m pytest -p no:cacheprovider {words[1]}")
    else:
        in_a_shell(line)


def run_script(arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        runpy.run_path(arguments[0], run_name="__main__")


def install(project: Path) -> None:
    """Install a plugin as a wheel, which needs no index; ``-e`` would build in isolation."""
    pytest.importorskip("hatchling", reason="hatchling is in the test extra")
    unpack_wheel(build_wheel(project, Path("build")), Path("site"))
    importlib.invalidate_caches()


def in_a_shell(line: str) -> None:
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def execute_all(number: str, then: Callable[[str], None] = lambda line: None) -> None:
    (page,) = EXAMPLES.glob(f"{number}_*/README.md")
    for line in commands(page):
        execute(line, page)
        then(line)


def test_two_sites(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed: dict[str, str] = {}

    def keep(line: str) -> None:
        captured = capsys.readouterr()
        printed[line] = captured.out

    execute_all("01", keep)
    build = workplace / "build"
    sites = {}
    for name in ("by_folder", "by_csv"):
        report = json.loads((build / name / "report.json").read_text())
        assert "<html" in (build / name / "report.html").read_text()
        sites[name] = set(report["data"]["sites"])
        assert report["data"]["patients_known"]["source"] is (name == "by_csv")
    assert sites == {"by_folder": {"source 1", "source 2"}, "by_csv": {"A", "B"}}
    with (build / "new.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 7
    scored = [out for line, out in printed.items() if " evaluate " in line]
    assert len(scored) == 2
    assert all("balanced_accuracy" in out for out in scored)


def test_the_manifests_say_what_the_folders_hold(workplace: Path) -> None:
    run_script(["examples/01_two_sites/draw_hospitals.py", "h", "--images", "30", "--size", "32"])
    with Path("h/sources.csv").open(newline="") as file:
        sources = list(csv.DictReader(file))
    assert {(row["path"].split("/")[0], row["site"]) for row in sources} == {
        ("hospital_a", "A"),
        ("hospital_b", "B"),
    }
    assert all(row["path"].split("/")[1] == row["label"] for row in sources)
    listed = {str(Path("h", row["path"])) for row in sources}
    assert listed == {str(p) for p in Path("h").glob("hospital_[ab]/*/*.png")}
    header = Path("h/target.csv").read_text().splitlines()[0]
    assert header == "path,patient_id"
    assert not [p for p in Path("h/hospital_c").iterdir() if p.is_dir()]


@pytest.mark.timeout(900)  # a dozen runs and checks
def test_write_a_plugin(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed: dict[str, str] = {}

    def keep(line: str) -> None:
        printed[line] = capsys.readouterr().out

    execute_all("02", keep)
    assert re.search(r"mcc +method +daptkit-mcc 0\.1\.0 +ok", printed["daptkit plugins list"])
    assert "--mcc.temperature" in printed["daptkit adapt -m mcc --help"]
    for name in ("mcc", "mine"):
        record = json.loads((workplace / "build" / name / "run.json").read_text())
        assert record["plugins"][name]["package"] == f"daptkit-{name}"
        lines = (workplace / "build" / name / "metrics.jsonl").read_text().splitlines()
        values = json.loads(lines[0])["values"]
        assert 0 < values[f"{name}/confusion"] < 1
    compared = json.loads((workplace / "build" / "compare" / "compare.json").read_text())
    assert compared["methods"] == ["none", "mine", "mine+bbse"]
    checked = [out for line, out in printed.items() if " plugins check " in line]
    assert len(checked) == 2
    assert all("closes_known_gap" in out and "failed" not in out for out in checked)


def test_the_tutorial_shows_the_files_as_they_are() -> None:
    folder = EXAMPLES / "02_write_a_plugin"
    page = folder / "README.md"
    sources = "".join(
        p.read_text() for g in ("src/*/*.py", "tests/*.py") for p in sorted(folder.glob(g))
    )
    shown = blocks(page, "python")
    assert len(shown) == 4
    assert all(block in sources for block in shown)
    assert blocks(page, "toml") == [(folder / "pyproject.toml").read_text()]


def test_python_api(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute_all("03")
    rows = re.findall(r"^ +(\d)  (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [seed for seed, _ in rows] == ["0", "1"]
    gains = []
    for seed, row in rows:
        numbers = [float(word) for word in row.split() if word != "-"]
        *_, before, after, gain = numbers
        assert gain == pytest.approx(after - before, abs=2e-3)
        gains.append(gain)
        folder = workplace / "build" / "seeds" / f"seed_{seed}"
        assert json.loads((folder / "run.json").read_text())["seed"] == int(seed)
        assert (folder / "again.csv").read_bytes() == (folder / "predictions.csv").read_bytes()


def test_the_calls_that_the_page_shows_are_those_of_the_script() -> None:
    page = EXAMPLES / "03_python_api" / "README.md"
    (code,) = blocks(page, "python")
    script = (page.parent / "compare_seeds.py").read_text()
    calls = re.findall(r"daptkit\.\w+\(", code)
    assert calls
    assert all(call in script for call in calls)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_pages(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_every_example_is_run() -> None:
    assert [page.parent.name[:2] for page in PAGES] == ["01", "02", "03"]
