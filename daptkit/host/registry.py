"""From a plugin module to checked specifications, one pluggy manager for each module."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import cast

import pluggy

from daptkit.errors import did_you_mean
from daptkit.host import hookspecs
from daptkit.host.entry import GROUPS, Unit
from daptkit.host.isolation import PluginFault, guarded
from daptkit.host.validate import Spec, check_name, check_spec
from daptkit.plugin import MethodSpec, ModelSpec, ReaderSpec, ScoreSpec

_SPECS: dict[str, tuple[str, type[Spec]]] = {
    "method": ("daptkit_methods", MethodSpec),
    "reader": ("daptkit_readers", ReaderSpec),
    "model": ("daptkit_models", ModelSpec),
    "score": ("daptkit_scores", ScoreSpec),
}
_EVENT_HOOK = "daptkit_event"
_HOOKS = frozenset({hook for hook, _ in _SPECS.values()} | {_EVENT_HOOK})
_GROUP_OF = {kind: group for group, kind in GROUPS.items()}
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one entry: its specification, or the reason why there is none.

    ``spec`` is ``None`` for listeners to events, which have no specification.
    """

    kind: str
    name: str
    spec: Spec | None = None
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the plugin can be used."""
        return not self.reason


def inspect_unit(unit: Unit, timeout: float | None) -> list[Finding]:
    """Import a module and check what it offers for each of its entries; never raises.

    Args:
        unit: module and entries.
        timeout: seconds that import and hooks may take each, ``None`` for no limit.
    """
    try:
        manager = register_module(unit.module, timeout)
    except PluginFault as fault:
        return [Finding(kind=kind, name=name, reason=str(fault)) for kind, name in unit.entries]
    findings: list[Finding] = []
    for kind in dict.fromkeys(kind for kind, _ in unit.entries):
        names = [n for k, n in unit.entries if k == kind]
        try:
            findings += _inspect_kind(manager, unit, kind, names, timeout)
        except PluginFault as fault:
            findings += [Finding(kind=kind, name=n, reason=str(fault)) for n in names]
    return findings


def register_module(name: str, timeout: float | None) -> pluggy.PluginManager:
    """Import a plugin module and register it with a manager of its own.

    A manager per module means that a registration that fails half-way leaves nothing behind.

    Raises:
        PluginFault: the import fails, or a hook is misspelt, unmarked or takes other arguments.
    """
    if not _MODULE.fullmatch(name):
        raise PluginFault(f"its entry point must name a module, not {name!r}")
    with guarded(f"importing {name}", timeout):
        module = importlib.import_module(name)
    manager = pluggy.PluginManager("daptkit")
    manager.add_hookspecs(hookspecs)
    _check_hook_names(manager, module)
    try:
        manager.register(module, name=name)
    except pluggy.PluginValidationError as error:
        lines = str(error).splitlines()
        raise PluginFault(f"a hook does not fit its specification: {lines[-1]}") from error
    return manager


def _check_hook_names(manager: pluggy.PluginManager, module: ModuleType) -> None:
    for name, value in vars(module).items():
        if not inspect.isroutine(value):
            continue
        marked = manager.parse_hookimpl_opts(module, name) is not None
        if (marked or name.startswith("daptkit_")) and name not in _HOOKS:
            raise PluginFault(f"there is no hook {name!r}.{did_you_mean(name, _HOOKS)}")
        if name in _HOOKS and not marked:
            raise PluginFault(f"hook {name!r} lacks the @daptkit.plugin.hookimpl marker")


def _inspect_kind(
    manager: pluggy.PluginManager,
    unit: Unit,
    kind: str,
    names: list[str],
    timeout: float | None,
) -> list[Finding]:
    hook = _EVENT_HOOK if kind == "event" else _SPECS[kind][0]
    if not getattr(manager.hook, hook).get_hookimpls():
        raise PluginFault(f"module {unit.module} does not implement the hook {hook!r}")
    if kind == "event":
        return [_inspect_listener(n) for n in names]
    specs = _call_hook(manager, kind, timeout)
    offered = [str(s.name) for s in specs]
    findings = [_inspect_name(kind, n, specs) for n in names]
    declared = {n for k, n in unit.entries + unit.unused if k == kind}
    if declared <= set(offered):
        findings += [
            Finding(kind=kind, name=stray, reason=_stray_reason(kind, stray, unit.module))
            for stray in dict.fromkeys(offered)
            if stray not in declared
        ]
    return findings


def _call_hook(manager: pluggy.PluginManager, kind: str, timeout: float | None) -> list[Spec]:
    hook, wanted = _SPECS[kind]
    with guarded(f"hook {hook!r}", timeout):
        results = getattr(manager.hook, hook)()
        # A generator runs foreign code, so it is drained inside the guard.
        returned = [s for result in results for s in _flatten(result)]
    for item in returned or [None]:
        if not isinstance(item, wanted):
            raise PluginFault(
                f"hook {hook!r} returned {type(item).__name__}, not a {wanted.__name__}"
            )
    return cast("list[Spec]", returned)


def _flatten(result: object) -> Iterable[object]:
    if isinstance(result, Iterable) and not isinstance(result, (str, bytes)):
        return result
    return (result,)


def _inspect_name(kind: str, name: str, specs: list[Spec]) -> Finding:
    matches = [s for s in specs if s.name == name]
    try:
        check_name(name)
        if not matches:
            offered = ", ".join(repr(s.name) for s in specs)
            raise PluginFault(f"its module offers {offered}, but nothing named {name!r}")
        if len(matches) > 1:
            raise PluginFault(f"its module offers the name {name!r} {len(matches)} times")
        # Odd field types can make a check itself raise; that is the plugin's fault too.
        with guarded("checking its specification", timeout=None):
            check_spec(matches[0])
    except PluginFault as fault:
        return Finding(kind=kind, name=name, reason=str(fault))
    return Finding(kind=kind, name=name, spec=matches[0])


def _inspect_listener(name: str) -> Finding:
    try:
        check_name(name)
    except PluginFault as fault:
        return Finding(kind="event", name=name, reason=str(fault))
    return Finding(kind="event", name=name)


def _stray_reason(kind: str, name: str, module: str) -> str:
    return (
        f'its package declares no entry point for it; add {name} = "{module}" '
        f"to the group {_GROUP_OF[kind]!r}"
    )
