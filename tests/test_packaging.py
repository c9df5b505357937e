"""What is shipped, what installs it, and the guards of the tests themselves."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import daptkit
from make_sites import CLASSES, make_sites

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))
HEAVY = ("torch", "torchvision", "timm", "numpy", "scipy", "sklearn", "numba", "umap")
PUBLIC_MODULES = ("plugin", "method", "reader", "nn", "shift", "testing", "errors")

each_plugin = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def package_name(folder: Path) -> str:
    return folder.name.replace("-", "_")


def test_host_wheel_holds_the_host_alone() -> None:
    wheel = project(ROOT)["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["daptkit"]}
    strays = {"tests", "plugins", "examples"} & {p.name for p in (ROOT / "daptkit").rglob("*")}
    assert not strays
    assert (ROOT / "daptkit" / "py.typed").is_file()


def test_host_version_is_stated_once_the_same() -> None:
    assert project(ROOT)["project"]["version"] == daptkit.__version__


@each_plugin
def test_plugin_wheel_holds_one_typed_package(folder: Path) -> None:
    wheel = project(folder)["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": [f"src/{package_name(folder)}"]}
    assert (folder / "src" / package_name(folder) / "py.typed").is_file()
    assert (folder / "README.md").is_file()


@each_plugin
def test_plugin_metadata(folder: Path) -> None:
    host, plugin = project(ROOT)["project"], project(folder)["project"]
    assert plugin["name"] == folder.name
    assert plugin["license"] == host["license"] == "Apache-2.0"
    assert plugin["requires-python"] == host["requires-python"]
    assert any(re.match(r"daptkit\b(?!-)", need) for need in plugin["dependencies"])


@each_plugin
def test_entry_points_are_installed_and_name_the_torch_free_module(folder: Path) -> None:
    groups = project(folder)["project"]["entry-points"]
    assert groups
    for group, entries in groups.items():
        installed = importlib.metadata.entry_points(group=group)
        for name, value in entries.items():
            assert value == f"{package_name(folder)}.plugin"
            assert [e.value for e in installed if e.name == name] == [value]
    assert (folder / "src" / package_name(folder) / "plugin.py").is_file()


def test_requirements_install_host_and_every_plugin() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split("\n")
    wanted = ["-e .[test]", *(f"-e ./plugins/{folder.name}" for folder in PLUGINS)]
    # Extras of a plugin, such as decoders, are its own matter.
    bare = ["-e .[test]" if line == "-e .[test]" else line.partition("[")[0] for line in lines]
    assert sorted(line for line in bare if line) == sorted(wanted)


def test_every_plugin_is_type_checked() -> None:
    files = project(ROOT)["tool"]["mypy"]["files"]
    plugins = (f"plugins/{folder.name}/src" for folder in PLUGINS)
    assert set(files) == {"daptkit", "examples/02_write_a_plugin/src", *plugins}


def test_torch_free_halves_import_nothing_heavy() -> None:
    modules = ["daptkit", "daptkit.plugin", "daptkit.config", "daptkit.errors", "daptkit.host"]
    modules += [f"{package_name(folder)}.plugin" for folder in PLUGINS]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@each_plugin
def test_plugins_use_the_public_api_only(folder: Path) -> None:
    allowed = {f"daptkit.{name}" for name in PUBLIC_MODULES}
    for file in sorted((folder / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            private = [n for n in names if n.split(".")[0] == "daptkit" and n not in allowed]
            assert not private, f"{file.relative_to(ROOT)} imports {private}"


def test_no_machine_path_or_registry_in_the_tree() -> None:
    folders = "|".join(("work", "root", "home", "Users", "opt", "mnt", "farm"))
    pattern = re.compile(
        rf"(?<![\w.\-/:])/(?:{folders})/\w|index-url|find-links|pypi\.org|pythonhosted"
    )
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()[:80]}"
        for file in tracked_files()
        if file.resolve() != Path(__file__).resolve()
        for line in file.read_text(encoding="utf-8", errors="ignore").split("\n")
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_ci_script_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_tests_cannot_reach_the_network() -> None:
    with pytest.raises(RuntimeError, match=r"connection to 192\.0\.2\.1"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert Path(os.environ["DAPTKIT_CACHE"]).is_dir()


def test_synthetic_sites(two_sites: Path, tmp_path: Path) -> None:
    counts = {site: len(list((two_sites / site).rglob("*.png"))) for site in ("source", "target")}
    assert counts == {"source": 48, "target": 40}
    for site in counts:
        for split in ("train", "test"):
            assert sorted(p.name for p in (two_sites / site / split).iterdir()) == sorted(CLASSES)
    again = make_sites(tmp_path, n_source=48, n_target=40, size=32)
    for file in two_sites.rglob("*.png"):
        assert (again / file.relative_to(two_sites)).read_bytes() == file.read_bytes()


def test_sites_differ_in_appearance_and_prevalence(two_sites: Path) -> None:
    def contrast(site: str) -> float:
        files = sorted((two_sites / site / "train" / "normal").iterdir())
        return float(np.mean([np.asarray(Image.open(file)).std() for file in files]))

    def share_normal(site: str) -> float:
        train = two_sites / site / "train"
        return len(list(train.glob("normal/*"))) / len(list(train.glob("*/*")))

    assert contrast("target") < 0.8 * contrast("source")
    assert share_normal("target") > share_normal("source") + 0.1
