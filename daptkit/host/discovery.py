"""Plugins as their packages' metadata declares them; nothing is imported here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from daptkit.host.entry import GROUPS, Entry, Unit
from daptkit.host.metadata import entry_points

DISABLE_VARIABLE = "DAPTKIT_DISABLE"


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What the metadata declares.

    Args:
        active: entries that may be used, one for each kind and name.
        duplicates: entries that lose their name to another package, with the winner.
        disabled: entries that ``DAPTKIT_DISABLE`` names.
    """

    active: tuple[Entry, ...]
    duplicates: tuple[tuple[Entry, Entry], ...]
    disabled: tuple[Entry, ...]

    def find(self, kind: str, name: str) -> Entry | None:
        """Return the active entry of that kind and name."""
        return next((e for e in self.active if (e.kind, e.name) == (kind, name)), None)

    def names(self, kind: str) -> list[str]:
        """Return the names of the active entries of a kind."""
        return [e.name for e in self.active if e.kind == kind]

    def units(self, kind: str | None = None) -> list[Unit]:
        """Return the modules of the active entries, of one kind or all, each once."""
        entries = [e for e in self.active if kind in (None, e.kind)]
        return [self.unit(e) for e in {_home(e): e for e in entries}.values()]

    def unit(self, entry: Entry) -> Unit:
        """Return the unit that the active ``entry`` belongs to."""
        unused = [*self.disabled, *(loser for loser, _ in self.duplicates)]
        return Unit(
            package=entry.package,
            version=entry.version,
            module=entry.module,
            entries=tuple((e.kind, e.name) for e in self.active if _home(e) == _home(entry)),
            unused=tuple((e.kind, e.name) for e in unused if _home(e) == _home(entry)),
        )


def discover() -> Discovery:
    """Read the entry points of every installed package and settle names and switches.

    Of two packages that declare one name, a package named ``daptkit-*`` wins, then the
    alphabetically first: the same one on every machine.
    """
    declared = sorted(_declared(), key=_precedence)
    switched_off = _switched_off()
    winners: dict[tuple[str, str], Entry] = {}
    duplicates: list[tuple[Entry, Entry]] = []
    disabled: list[Entry] = []
    for entry in declared:
        if entry.name in switched_off or _normalise(entry.package) in switched_off:
            disabled.append(entry)
        elif (winner := winners.setdefault((entry.kind, entry.name), entry)) is not entry:
            duplicates.append((entry, winner))
    return Discovery(
        active=tuple(winners.values()), duplicates=tuple(duplicates), disabled=tuple(disabled)
    )


def duplicate_reason(entry: Entry, winner: Entry) -> str:
    """Return who owns the name of ``entry`` and how to choose otherwise."""
    return (
        f"the name {entry.name!r} is taken by {winner.origin}; uninstall one of the two "
        f"or set {DISABLE_VARIABLE}={winner.package} to use this one"
    )


def _declared() -> list[Entry]:
    return [
        Entry(
            kind=GROUPS[p.group],
            name=p.name,
            module=p.value,
            package=p.package,
            version=p.version,
        )
        for p in entry_points(GROUPS)
    ]


def _home(entry: Entry) -> tuple[str, str, str]:
    return entry.package, entry.version, entry.module


def _precedence(entry: Entry) -> tuple[str, str, bool, str, str]:
    package = _normalise(entry.package)
    return entry.kind, entry.name, not package.startswith("daptkit-"), package, entry.module


def _normalise(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _switched_off() -> frozenset[str]:
    """Names as written and, for packages, in their normal form."""
    words = [w.strip() for w in os.environ.get(DISABLE_VARIABLE, "").split(",") if w.strip()]
    return frozenset(words) | frozenset(_normalise(w) for w in words)
