"""Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Reporter(Protocol):
    """Where a run tells how far it is."""

    def line(self, text: str) -> None:
        """Show one line that stays."""

    def start(self, label: str, total: int, done: int) -> None:
        """Begin a phase of ``total`` steps, ``done`` of which are behind."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Show the step reached and the named losses."""

    def advance(self, step: int) -> None:
        """Show the step reached, without reading any loss."""

    def stop(self) -> None:
        """End the phase."""


class SilentReporter:
    """Shows nothing; the default of the Python functions."""

    def line(self, text: str) -> None:
        """Ignore the line."""

    def start(self, label: str, total: int, done: int) -> None:
        """Ignore the phase."""

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Ignore the values."""

    def advance(self, step: int) -> None:
        """Ignore the step."""

    def stop(self) -> None:
        """Nothing to end."""


class PlainReporter(SilentReporter):
    """Lines on stderr, for logs and pipes; about ten a phase."""

    def __init__(self) -> None:
        self._label, self._total, self._next = "", 1, 0

    def line(self, text: str) -> None:
        """Print the line."""
        print(text, file=sys.stderr, flush=True)

    def start(self, label: str, total: int, done: int) -> None:
        """Print the name of the phase."""
        self._label, self._total, self._next = label, total, done
        self.line(f"{label}: {total - done} steps")

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Print a line at every tenth of the phase."""
        if step >= self._next:
            self._next = step + max(1, self._total // 10)
            self.line(f"{self._label} {step}/{self._total}  {format_values(values)}")


class RichReporter(SilentReporter):
    """A live bar with the named losses."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def line(self, text: str) -> None:
        """Print above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def start(self, label: str, total: int, done: int) -> None:
        """Show a new bar."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total, completed=done, values="")
        self._progress.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Move the bar and show the losses."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step, values=format_values(values))

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def stop(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def format_values(values: Mapping[str, float]) -> str:
    """Return ``name value`` pairs of named numbers, three significant digits each."""
    return "  ".join(f"{name} {value:.3g}" for name, value in values.items())


def terminal_reporter() -> Reporter:
    """Return a live bar where stderr is a terminal, plain lines elsewhere."""
    return RichReporter() if sys.stderr.isatty() else PlainReporter()
