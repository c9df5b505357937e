"""One installed plugin of any kind, by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from daptkit.errors import PluginError, UsageError, did_you_mean
from daptkit.host.discovery import DISABLE_VARIABLE, Discovery, discover
from daptkit.host.entry import GROUPS, Entry
from daptkit.host.isolation import plugin_timeout
from daptkit.host.loading import Loaded, LoadedMethod
from daptkit.host.registry import inspect_unit, register_module
from daptkit.host.validate import Spec
from daptkit.plugin import MethodSpec

KINDS = tuple(GROUPS.values())


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A plugin that loads.

    Args:
        entry: its entry point.
        spec: its specification; ``None`` for listeners to events, which have none.
    """

    entry: Entry
    spec: Spec | None

    @property
    def loaded(self) -> Loaded[Any]:
        """Specification and package, which import the factory when asked to."""
        assert self.spec is not None, "listeners have no factory"
        made = LoadedMethod if isinstance(self.spec, MethodSpec) else Loaded
        return made(spec=self.spec, package=self.entry.package, version=self.entry.version)  # type: ignore[arg-type]

    @property
    def listener(self) -> Callable[..., Any]:
        """The hook ``daptkit_event`` of the plugin's module."""
        hook: Callable[..., Any] = register_module(self.entry.module, None).hook.daptkit_event
        return hook


def find_plugins(name: str | None = None, kind: str | None = None) -> list[Entry]:
    """Return the plugins of a name, a kind, both, or all, in the order of ``plugins list``.

    Nothing is imported.

    Args:
        name: entry-point name; every name if ``None``.
        kind: one of :data:`KINDS`; every kind if ``None``.

    Raises:
        UsageError: no such plugin, or it is switched off.
    """
    found = discover()
    entries = [e for e in found.active if kind in (None, e.kind) and name in (None, e.name)]
    if name is not None and not entries:
        raise UsageError(_unknown(name, kind, found))
    return sorted(entries, key=lambda e: (KINDS.index(e.kind), e.name))


def load_plugin(entry: Entry) -> Installed:
    """Import the torch-free half of a plugin and check it.

    Raises:
        PluginError: it is broken.
    """
    findings = inspect_unit(discover().unit(entry), plugin_timeout())
    finding = next(f for f in findings if (f.kind, f.name) == (entry.kind, entry.name))
    if not finding.ok:
        raise PluginError(
            f"{entry.kind} {entry.name!r} of package {entry.origin} cannot be used:"
            f" {finding.reason}."
        )
    return Installed(entry=entry, spec=finding.spec)


def _unknown(name: str, kind: str | None, found: Discovery) -> str:
    what = kind or "plugin"
    for entry in found.disabled:
        if entry.name == name and kind in (None, entry.kind):
            return (
                f"{entry.kind} {name!r} of package {entry.origin} is switched off by"
                f" {DISABLE_VARIABLE}."
            )
    names = sorted({e.name for e in found.active if kind in (None, e.kind)})
    return (
        f"no {what} {name!r} is installed (have: {', '.join(names) or 'none'})."
        f"{did_you_mean(name, names)}"
    )
