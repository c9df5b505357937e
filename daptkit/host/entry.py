"""Entries of plugins and the units they form: plain values that cross to a child process."""

from __future__ import annotations

from dataclasses import dataclass

GROUPS = {
    "daptkit": "method",
    "daptkit.readers": "reader",
    "daptkit.models": "model",
    "daptkit.scores": "score",
    "daptkit.events": "event",
}
"""Entry-point group to the kind of plugin it declares."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry point: a plugin's name and the module that implements it.

    Args:
        kind: a value of :data:`GROUPS`.
        name: entry name, which is the plugin's name.
        module: entry value, a module.
        package: distribution that declares it.
        version: version of that distribution.
    """

    kind: str
    name: str
    module: str
    package: str
    version: str

    @property
    def origin(self) -> str:
        """Package and version, as messages show them."""
        return f"{self.package} {self.version}"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one package points at one module: imported and registered once.

    Args:
        package: distribution that declares the entries.
        version: version of that distribution.
        module: their value.
        entries: kind and name of each entry in use.
        unused: kind and name of each that is switched off or lost its name to another package.
    """

    package: str
    version: str
    module: str
    entries: tuple[tuple[str, str], ...]
    unused: tuple[tuple[str, str], ...] = ()
