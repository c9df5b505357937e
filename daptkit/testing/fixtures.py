"""Fixtures of pytest for the tests of plugins.

A test module, or its conftest, imports those that it uses::

    from daptkit.testing.fixtures import daptkit_host, fast_trainer
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec as PythonModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from daptkit.host import discovery
from daptkit.host.entry import GROUPS
from daptkit.host.metadata import Point
from daptkit.plugin import MethodSpec, ModelSpec, ReaderSpec, ScoreSpec, hookimpl
from daptkit.testing.trainer import FastTrainer

_GROUP_OF = {kind: group for group, kind in GROUPS.items()}
_KINDS = {MethodSpec: "method", ReaderSpec: "reader", ModelSpec: "model", ScoreSpec: "score"}


class FakeHost:
    """What this process takes for the installed plugins: those that a test has added, no others."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.modules: list[str] = []

    def install(
        self,
        name: str,
        module: str,
        *,
        kind: str = "method",
        package: str = "daptkit-under-test",
        version: str = "0.0",
    ) -> None:
        """Declare a plugin as the entry point of a package would.

        Args:
            name: entry-point name.
            module: torch-free module that implements the hook.
            kind: ``"method"``, ``"reader"``, ``"model"``, ``"score"`` or ``"event"``.
            package: distribution that seems to declare it.
            version: its version.
        """
        point = Point(
            group=_GROUP_OF[kind], name=name, value=module, package=package, version=version
        )
        self.points.append(point)

    def add(
        self, spec: MethodSpec | ReaderSpec | ModelSpec | ScoreSpec, factory: Callable[..., Any]
    ) -> None:
        """Declare a plugin that is written in the test: no package and no module of its own.

        Args:
            spec: its specification; what it says of the factory is not used.
            factory: the method's class, or the function that a factory string would name.
        """
        kind = _KINDS[type(spec)]
        module = ModuleType(f"daptkit_test_plugin_{len(self.modules)}")
        module.__spec__ = PythonModuleSpec(module.__name__, loader=None)
        made = replace(spec, factory=f"{module.__name__}:factory")

        @hookimpl
        def hook() -> Any:
            return made

        vars(module).update({"factory": factory, f"daptkit_{kind}s": hook})
        sys.modules[module.__name__] = module
        self.modules.append(module.__name__)
        self.install(spec.name, module.__name__, kind=kind)


@pytest.fixture
def daptkit_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    """A host without discovery: it knows the plugins that a test adds, and no installed one."""
    host = FakeHost()
    monkeypatch.setattr(discovery, "entry_points", lambda groups: list(host.points))
    monkeypatch.delenv(discovery.DISABLE_VARIABLE, raising=False)
    yield host
    for name in host.modules:
        sys.modules.pop(name, None)


@pytest.fixture
def fast_trainer(tmp_path: Path) -> FastTrainer:
    """The host's own trainer on a tiny task, on the CPU."""
    return FastTrainer(tmp_path / "fast_trainer")
