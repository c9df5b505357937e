"""``plugins list``: every installed plugin, looked at in a child process."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from daptkit.errors import DaptkitError
from daptkit.host.isolation import PluginFault, plugin_timeout, timeout_reason

if TYPE_CHECKING:
    from daptkit.host.discovery import Discovery
    from daptkit.host.entry import Entry, Unit

_START_LIMIT = 60.0
_KIND_ORDER = ("method", "reader", "model", "score", "event")


@dataclass(frozen=True, kw_only=True)
class PluginStatus:
    """One line of ``plugins list``.

    Args:
        kind: ``"method"``, ``"reader"``, ``"model"``, ``"score"`` or ``"event"``.
        name: entry-point name.
        package: distribution that declares it.
        version: version of that distribution.
        status: ``"ok"``, ``"error"``, ``"duplicate"`` or ``"disabled"``.
        reason: why it is not ``"ok"``.
        summary: what the plugin says of itself.
        reference: paper.
        addresses: kinds of shift that a method is for.
        roles: roles that a method owns.
        risks: what can go wrong with a method by its nature.
        corrects: what a method evens out in the images.
    """

    kind: str
    name: str
    package: str
    version: str
    status: str
    reason: str = ""
    summary: str = ""
    reference: str = ""
    addresses: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    risks: list[str] = field(default_factory=list)
    corrects: list[str] = field(default_factory=list)


def list_plugins(timeout: float | None = None) -> list[PluginStatus]:
    """Look at every installed plugin without importing any into this process.

    One child process imports the plugin modules one after the other. A module that takes longer
    than the limit, or takes the process down, is blamed, and a new child looks at the rest.

    Args:
        timeout: seconds for one module; ``DAPTKIT_PLUGIN_TIMEOUT`` or 10 when ``None``.

    Raises:
        UsageError: ``DAPTKIT_PLUGIN_TIMEOUT`` is not a positive number.
        DaptkitError: no child process can be started.
    """
    limit = plugin_timeout() if timeout is None else timeout
    prober = _Prober(limit)
    try:
        # Imported while the child starts: reading the metadata takes about as long.
        from daptkit.host.discovery import discover

        found = discover()
        statuses = [s for unit in found.units() for s in prober.look_at(unit)]
    finally:
        prober.close()
    return sorted(
        statuses + _settled(found),
        key=lambda s: (_KIND_ORDER.index(s.kind), s.name, s.status != "ok", s.package),
    )


def _settled(found: Discovery) -> list[PluginStatus]:
    """Statuses that need no import."""
    from daptkit.host.discovery import DISABLE_VARIABLE, duplicate_reason

    return [
        _status(loser, "duplicate", duplicate_reason(loser, winner))
        for loser, winner in found.duplicates
    ] + [
        _status(entry, "disabled", f"switched off by {DISABLE_VARIABLE}")
        for entry in found.disabled
    ]


def _status(entry: Entry, status: str, reason: str) -> PluginStatus:
    return PluginStatus(
        kind=entry.kind,
        name=entry.name,
        package=entry.package,
        version=entry.version,
        status=status,
        reason=reason,
    )


class _Died(Exception):
    """The child process ended instead of answering."""


class _Prober:
    """Asks a child process about units and replaces the child when a unit takes it down."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._child: _Child | None = _Child()

    def look_at(self, unit: Unit) -> list[PluginStatus]:
        """Return one status for each entry of a unit; never raises for its faults."""
        try:
            rows = self._ask(unit)
        except (PluginFault, _Died) as fault:
            self.close()
            rows = [{"kind": k, "name": n, "reason": str(fault)} for k, n in unit.entries]
        return [
            PluginStatus(
                package=unit.package,
                version=unit.version,
                status="error" if row["reason"] else "ok",
                **row,
            )
            for row in rows
        ]

    def _ask(self, unit: Unit) -> list[dict[str, Any]]:
        if self._child is None:
            self._child = _Child()
        alone = self._child.fresh
        try:
            return self._child.ask(unit, self._limit)
        except _Died:
            if alone:
                raise
            # A thread that an earlier plugin left behind may be to blame: ask again, alone.
            self.close()
            self._child = _Child()
            return self._child.ask(unit, self._limit)

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class _Child:
    """One process of :mod:`daptkit.host.probe`, with a thread that reads its answers."""

    def __init__(self) -> None:
        # The child sees the same modules as this process, however its path was put together.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from daptkit.host.probe import main; main()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._ready = False
        self.fresh = True

    def ask(self, unit: Unit, limit: float) -> list[dict[str, Any]]:
        """Return one row for each plugin of a unit.

        Raises:
            PluginFault: the child was too slow.
            _Died: the child ended.
            DaptkitError: the child did not start.
        """
        self._wait_until_ready()
        self.fresh = False
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # a dead child is told by its missing answer
            self._process.stdin.write(json.dumps(asdict(unit)) + "\n")
            self._process.stdin.flush()
        try:
            answer = self._answers.get(timeout=limit)
        except queue.Empty:
            raise PluginFault(timeout_reason(limit)) from None
        if not answer:
            raise _Died(f"its import ended the process ({self._ending()})")
        rows: list[dict[str, Any]] = json.loads(answer)
        return rows

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._reader.join(timeout=1.0)
        if not self._reader.is_alive():  # a process that a plugin forked may hold the pipe open
            self._process.stdout.close()

    def _wait_until_ready(self) -> None:
        if self._ready:
            return
        try:
            self._ready = bool(self._answers.get(timeout=_START_LIMIT))
        except queue.Empty:
            self._ready = False
        if not self._ready:
            raise DaptkitError(
                f"cannot look at the plugins: {sys.executable} did not start; "
                "check the Python installation."
            )

    def _read(self) -> None:
        """Queue every line; an empty one marks the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def _ending(self) -> str:
        code = self._process.wait(timeout=_START_LIMIT)
        if code >= 0:
            return f"exit status {code}"
        return f"signal {signal.Signals(-code).name}"
