"""Events of a run for loggers and trackers; a listener that fails costs one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from daptkit.host.discovery import discover
from daptkit.host.isolation import PluginFault, guarded, plugin_timeout, warn
from daptkit.host.registry import inspect_unit, register_module
from daptkit.plugin import Event


class EventBus:
    """The listeners of one process, imported from the group ``daptkit.events`` on creation.

    Args:
        log: told one line about each listener that is broken or fails.
    """

    def __init__(self, log: Callable[[str], None] = warn) -> None:
        self._log = log
        self._hooks: dict[str, Any] = {}
        for unit in discover().units("event"):
            findings = [f for f in inspect_unit(unit, plugin_timeout()) if f.kind == "event"]
            names = ", ".join(f.name for f in findings)
            origin = f"{names} of package {unit.package} {unit.version}"
            broken = [f for f in findings if not f.ok]
            if broken:
                log(f"warning: event listener {origin} is left out: {broken[0].reason}")
            else:
                self._hooks[origin] = register_module(unit.module, None).hook

    def emit(self, event: Event) -> None:
        """Tell every listener; one that raises is reported once and switched off."""
        for origin, hook in list(self._hooks.items()):
            try:
                with guarded("it", timeout=None):
                    hook.daptkit_event(event=event)
            except PluginFault as fault:
                del self._hooks[origin]
                self._log(f"warning: event listener {origin} is switched off: {fault}")


def emit_event(event: Event) -> None:
    """Tell the installed listeners of an event; never raises for a listener's fault."""
    _bus().emit(event)


@functools.cache
def _bus() -> EventBus:
    return EventBus()
