"""Host and plugins as wheels in an environment of their own, with no checkout in sight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from make_sites import make_sites
from wheels import build_wheel

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = [ROOT, *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))]
RUN = ("-m", "dann+bbse", "--model", "daptkit_lenet", "--epochs", "1", "--batch-size", "8")


class Installed:
    """An environment that holds the wheels, and a folder to work in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = root / "work"
        self.python = root / "env" / "bin" / "python"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the working folder."""
        inherited = {n: v for n, v in os.environ.items() if not n.startswith("PYTHON")}
        return subprocess.run(
            [str(self.python.with_name(command[0])), *command[1:]],
            cwd=self.work,
            env={**inherited, "DAPTKIT_CACHE": str(self.root / "cache")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def pip(installed: Installed, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this environment's pip on the other one, which has none; it can reach no index."""
    command = [sys.executable, "-m", "pip", "--python", str(installed.python), *arguments]
    offline = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(command, env=offline, capture_output=True, text=True, check=False)


def show_dependencies(python: Path) -> None:
    """Make every package of this environment but daptkit's visible in another, by links."""
    there = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    for here in {Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}:
        for entry in here.iterdir():
            ours = "daptkit" in entry.name or entry.suffix == ".pth"
            if not ours and not (there / entry.name).exists():
                (there / entry.name).symlink_to(entry)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel of the host, then those of the plugins."""
    pytest.importorskip("hatchling", reason="hatchling is in the test extra")
    out = tmp_path_factory.mktemp("wheels")
    return [build_wheel(project, out) for project in PROJECTS]


@pytest.fixture(scope="module")
def installed(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """An environment with the wheels installed."""
    made = Installed(tmp_path_factory.mktemp("elsewhere"))
    made.work.mkdir()
    venv.create(made.root / "env", with_pip=False, symlinks=True)
    show_dependencies(made.python)
    done = pip(made, "install", "--no-index", "--no-deps", *map(str, wheels))
    assert done.returncode == 0, done.stderr
    return made


def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_of_the_host_holds_all_of_the_package_and_nothing_else(
    wheels: list[Path],
) -> None:
    held = set(names(wheels[0]))
    tops = {name.split("/")[0] for name in held}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tops == {"daptkit", f"daptkit-{version}.dist-info"}
    here = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "daptkit").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in held if name.startswith("daptkit/")} == here
    assert "daptkit/py.typed" in held
    assert [n for n in held if n.startswith("daptkit/report/templates/")]
    assert f"daptkit-{version}.dist-info/licenses/LICENSE" in held


def test_the_wheels_of_the_plugins_hold_one_package_each(wheels: list[Path]) -> None:
    for project, wheel in zip(PROJECTS[1:], wheels[1:], strict=True):
        package = project.name.replace("-", "_")
        held = [name for name in names(wheel) if ".dist-info/" not in name]
        assert f"{package}/py.typed" in held
        assert {name.split("/")[0] for name in held} == {package}


def test_what_is_imported_is_what_was_installed(installed: Installed) -> None:
    plugins = [project.name.replace("-", "_") for project in PROJECTS[1:]]
    code = f"import daptkit, {', '.join(plugins)}\n"
    code += f"print(*(m.__file__ for m in (daptkit, {', '.join(plugins)})), sep='\\n')"
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    assert len(files) == len(PROJECTS)
    assert all(file.is_relative_to(installed.root / "env") for file in files)


def test_no_requirement_is_missing(installed: Installed) -> None:
    told = pip(installed, "check").stdout.splitlines()
    assert told
    assert [line for line in told if line.startswith("daptkit")] == []


def test_plugins_are_found(installed: Installed) -> None:
    done = installed.run("daptkit", "plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["package"] for row in rows} == {project.name for project in PROJECTS[1:]}
    assert {row["status"] for row in rows} == {"ok"}


def test_a_run_with_its_report(installed: Installed) -> None:
    make_sites(installed.work / "sites", n_source=48, n_target=40, size=32)
    sites = ("--source", "sites/source", "--target", "sites/target")
    done = installed.run("daptkit", "adapt", *sites, *RUN, "--out", "run")
    assert done.returncode == 0, done.stderr
    run = installed.work / "run"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "dann" in page
    assert json.loads((run / "report.json").read_text())["models"] == ["source-only", "adapted"]
    assert list((run / "figures").iterdir())
    assert (run / "predictions.csv").is_file()
