"""All checks of a plugin: for pytest, and for ``daptkit plugins check``."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from daptkit.errors import PluginError, UsageError, did_you_mean
from daptkit.host import LoadedMethod
from daptkit.host.entry import Entry
from daptkit.host.isolation import describe
from daptkit.host.lookup import KINDS, find_plugins, load_plugin
from daptkit.testing.answer_checks import ANSWER_CHECKS
from daptkit.testing.batch_checks import BATCH_CHECKS
from daptkit.testing.case import MethodCase, NotApplicable
from daptkit.testing.feature_checks import FEATURE_CHECKS
from daptkit.testing.image_checks import IMAGE_CHECKS
from daptkit.testing.loss_checks import LOSS_CHECKS
from daptkit.testing.other_checks import OTHER_CHECKS, PluginCase
from daptkit.testing.spec_checks import SPEC_CHECKS
from daptkit.testing.state_checks import STATE_CHECKS

TestT = TypeVar("TestT", bound=Callable[..., Any])

METHOD_CHECKS = (
    *SPEC_CHECKS,
    *LOSS_CHECKS,
    *BATCH_CHECKS,
    *STATE_CHECKS,
    *IMAGE_CHECKS,
    *FEATURE_CHECKS,
    *ANSWER_CHECKS,
)
"""Checks of a method, the quick ones first."""


@dataclass(frozen=True)
class Check:
    """One check of one plugin.

    Args:
        name: name of the check.
        says: what it asks for, in one sentence.
        body: runs it, and raises where the plugin does not pass or the check does not apply.
    """

    name: str
    says: str
    body: Callable[[], None]

    def __call__(self) -> None:
        """Run it in a test of pytest, which is skipped where the check does not apply."""
        import pytest

        try:
            self.body()
        except NotApplicable as reason:
            pytest.skip(str(reason))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a check found.

    Args:
        check: its name.
        status: ``"passed"``, ``"failed"`` or ``"skipped"``, where it does not apply.
        reason: why it is not ``"passed"``, in one line.
        seconds: how long it took.
    """

    check: str
    status: str
    reason: str = ""
    seconds: float = 0.0


def check_names(kind: str = "method") -> tuple[str, ...]:
    """Return the names of the checks of a kind of plugin, in order."""
    return tuple(function.__name__ for function in _functions(kind))


def plugin_checks(entry: Entry, device: str = "cpu") -> list[Check]:
    """Return the checks of an installed plugin, which is imported by the first that runs.

    Args:
        entry: the plugin.
        device: ``"cpu"``, or a GPU as torch names it.
    """
    return _bound(entry.kind, functools.cache(lambda: _case(entry, device)))


def run_checks(checks: list[Check]) -> Iterator[Outcome]:
    """Run checks one after the other; whatever a plugin raises is an outcome."""
    for check in checks:
        start = time.perf_counter()
        status, reason = "passed", ""
        try:
            check.body()
        except NotApplicable as why:
            status, reason = "skipped", str(why)
        except AssertionError as fault:
            status, reason = "failed", " ".join(str(fault).split()) or "an assertion failed"
        except Exception as error:  # noqa: BLE001 - isolation boundary: a plugin may raise anything
            status, reason = "failed", describe(error)
        seconds = time.perf_counter() - start
        yield Outcome(check=check.name, status=status, reason=reason, seconds=seconds)


def check_plugin(entry: Entry, device: str = "cpu") -> Iterator[Outcome]:
    """Run every check of an installed plugin; one that does not load has one outcome.

    Args:
        entry: the plugin.
        device: ``"cpu"``, or a GPU as torch names it.
    """
    try:
        load_plugin(entry)
    except PluginError as error:
        yield Outcome(check="loads", status="failed", reason=str(error))
        return
    yield from run_checks(plugin_checks(entry, device))


def parametrize_with_checks(
    plugin: str | LoadedMethod,
    *,
    kind: str = "method",
    device: str = "cpu",
    expected_failed: Mapping[str, str] | None = None,
) -> Callable[[TestT], TestT]:
    """Decorate a test that takes ``check``: it runs once for each check of a plugin.

    Example::

        @parametrize_with_checks("mine", expected_failed={"batch_of_one": "needs pairs of images"})
        def test_conformance(check):
            check()

    A check that is expected to fail, and passes, fails: the reason is no longer true.

    Args:
        plugin: name of an installed plugin, or a method that a test has made.
        kind: ``"method"``, ``"reader"``, ``"model"``, ``"score"`` or ``"event"``.
        device: ``"cpu"``, or a GPU as torch names it.
        expected_failed: check to the reason why the plugin does not pass it.

    Raises:
        UsageError: ``expected_failed`` names no check, or gives no reason.
    """
    import pytest

    expected = dict(expected_failed or {})
    known = check_names(kind)
    for name, reason in expected.items():
        if name not in known:
            raise UsageError(f"there is no check {name!r}.{did_you_mean(name, known)}")
        if not reason.strip():
            raise UsageError(f"check {name!r} is expected to fail: say why.")
    mark: Callable[[TestT], TestT] = pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                check,
                id=check.name,
                marks=[pytest.mark.xfail(reason=expected[check.name], strict=True)]
                if check.name in expected
                else [],
            )
            for check in _bound(kind, functools.cache(lambda: _find(plugin, kind, device)))
        ],
    )
    return mark


def method_checks(loaded: LoadedMethod, device: str = "cpu") -> list[Check]:
    """Return the checks of a method that a test has made, which no package declares."""
    return _bound("method", lambda: _find(loaded, "method", device))


def _find(plugin: str | LoadedMethod, kind: str, device: str) -> Any:
    if isinstance(plugin, LoadedMethod):
        return MethodCase(loaded=plugin, device=torch.device(device))
    (entry,) = find_plugins(plugin, kind)
    return _case(entry, device)


def _case(entry: Entry, device: str) -> Any:
    installed, place = load_plugin(entry), torch.device(device)
    if entry.kind == "method":
        loaded: Any = installed.loaded
        return MethodCase(loaded=loaded, module=entry.module, device=place)
    return PluginCase(installed=installed, device=place)


def _bound(kind: str, case: Callable[[], Any]) -> list[Check]:
    return [
        Check(f.__name__, (inspect.getdoc(f) or "").split("\n")[0], _Body(f, case))
        for f in _functions(kind)
    ]


@dataclass(frozen=True)
class _Body:
    function: Callable[[Any], None]
    case: Callable[[], Any]

    def __call__(self) -> None:
        self.function(self.case())


def _functions(kind: str) -> tuple[Callable[[Any], None], ...]:
    if kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r} of plugin (have: {', '.join(KINDS)}).")
    return METHOD_CHECKS if kind == "method" else OTHER_CHECKS[kind]
