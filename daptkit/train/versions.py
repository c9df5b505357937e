"""Which plugin packages a checkpoint was written with, and which continue it."""

from __future__ import annotations

from collections.abc import Mapping


def version_changes(written: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return a warning for each method whose package or version is another one.

    Args:
        written: method to ``"package version"`` in the checkpoint; empty in those of before it was
            recorded.
        now: the same of the run that continues it.
    """
    return [
        f"warning: method '{name}' was {before} when the checkpoint was written and is"
        f" {now[name]} now: the run goes on, and may not be what either version alone would give."
        for name, before in written.items()
        if name in now and now[name] != before
    ]
