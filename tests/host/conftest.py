"""Plugin packages made on the fly: a folder of modules and metadata that goes on the path."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

GOOD = """
from dataclasses import dataclass
from daptkit.plugin import MethodSpec, hookimpl, option

@dataclass(frozen=True, kw_only=True)
class Options:
    weight: float = option(1.0, "Weight of the alignment loss.", low=0.0, high=10.0)
    layer_names: tuple[str, ...] = option((), "Layers that are aligned.")
    mean_term: bool = option(False, "Align the means too.")

@hookimpl
def daptkit_methods():
    return MethodSpec(name="NAME", summary="Aligns NAME.", factory="MODULE_method:Aligner",
                      options=Options, reference="arXiv:0000.00000")
"""

FACTORY = """
from daptkit.method import Method

class Aligner(Method):
    pass
"""


class Site:
    """A folder of fake packages, on the path of this process and of children."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def install(
        self,
        package: str,
        sources: Mapping[str, str],
        entries: Mapping[str, Mapping[str, str]],
        version: str = "1.0",
    ) -> None:
        """Write modules, METADATA and entry_points.txt as an installer would."""
        for module, source in sources.items():
            (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        )
        lines = []
        for group, points in entries.items():
            lines.append(f"[{group}]")
            lines += [f"{name} = {module}" for name, module in points.items()]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

    def method(self, package: str, name: str, source: str = GOOD, version: str = "1.0") -> str:
        """Install a package of one method and return its module's name."""
        module = "plugin_" + package.replace("-", "_")
        source = source.replace("MODULE", module).replace("NAME", name)
        self.install(
            package,
            {module: source, f"{module}_method": FACTORY},
            {"daptkit": {name: module}},
            version,
        )
        return module

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``python`` with these packages installed."""
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": str(self.folder), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(made.folder))
    for variable in ("DAPTKIT_DISABLE", "DAPTKIT_PLUGIN_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    yield made
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(made.folder)):
            del sys.modules[name]


@pytest.fixture
def lines() -> tuple[list[str], Callable[[str], None]]:
    """A log: the list of its lines and the function that adds one."""
    kept: list[str] = []
    return kept, kept.append
