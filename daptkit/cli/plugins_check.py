"""``daptkit plugins check``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from daptkit.cli.lazy import debug_option
from daptkit.errors import PluginError, UsageError
from daptkit.host.entry import GROUPS, Entry

if TYPE_CHECKING:
    from daptkit.testing import Outcome

_HEADER = ("CHECK", "STATUS", "SECONDS", "REASON")
_ALL_HEADER = ("NAME", "KIND", "PACKAGE", "PASSED", "SKIPPED", "FAILED", "SECONDS")


@click.command("check", epilog="Exit code 4 when a check fails; skipped ones do not apply.")
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Check every installed plugin.")
@click.option(
    "--kind", type=click.Choice(list(GROUPS.values())), help="Kind of plugin that is meant."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--json", is_flag=True, help="Print what was found as JSON.")
def command(name: str | None, every: bool, kind: str | None, device: str, json: bool) -> None:
    """Check that a plugin keeps the contract and does what it is for.

    Every check, and how a package's own tests run them, is in the README under "Write a method".
    """
    if (name is None) != every:
        raise UsageError("name one plugin, or give --all for every one.")
    from daptkit.cli.output import print_json
    from daptkit.host.lookup import find_plugins
    from daptkit.train.device import resolve_device

    entries = find_plugins(name, kind)
    place = str(resolve_device(device))
    found = [(entry, _outcomes(entry, place)) for entry in entries]
    if json:
        print_json([_to_json(entry, outcomes) for entry, outcomes in found])
    elif every:
        _print_all(found)
    else:
        for entry, outcomes in found:
            _print_one(entry, outcomes)
    _refuse_failures(found)


def _outcomes(entry: Entry, device: str) -> list[Outcome]:
    from daptkit.testing import check_plugin

    click.echo(f"checking {entry.kind} {entry.name} of {entry.origin}", err=True)
    # What a plugin prints is not part of the table.
    with contextlib.redirect_stdout(sys.stderr):
        return list(check_plugin(entry, device))


def _to_json(entry: Entry, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "kind": entry.kind,
        "name": entry.name,
        "package": entry.package,
        "version": entry.version,
        "ok": not _failed(outcomes),
        "checks": [asdict(outcome) for outcome in outcomes],
    }


def _print_one(entry: Entry, outcomes: Sequence[Outcome]) -> None:
    from daptkit.cli.output import print_columns

    click.echo(f"{entry.kind} {entry.name} of {entry.origin}")
    rows = [(o.check, o.status, f"{o.seconds:.2f}", o.reason) for o in outcomes]
    print_columns(_HEADER, rows)


def _print_all(found: Sequence[tuple[Entry, Sequence[Outcome]]]) -> None:
    from daptkit.cli.output import print_columns

    if not found:
        click.echo("no plugins are installed; for example, pip install daptkit-dann")
        return
    rows = []
    for entry, outcomes in found:
        counts = [
            str(sum(o.status == status for o in outcomes))
            for status in ("passed", "skipped", "failed")
        ]
        seconds = f"{sum(o.seconds for o in outcomes):.1f}"
        rows.append((entry.name, entry.kind, entry.origin, *counts, seconds))
    print_columns(_ALL_HEADER, rows)
    failures = [
        (entry.name, o.check, o.reason) for entry, outcomes in found for o in _failed(outcomes)
    ]
    if failures:
        click.echo("")
        print_columns(("NAME", "CHECK", "REASON"), failures)


def _failed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.status == "failed"]


def _refuse_failures(found: Sequence[tuple[Entry, Sequence[Outcome]]]) -> None:
    """Leave with the exit code of a plugin fault where a check has failed."""
    bad = [(entry, _failed(outcomes)) for entry, outcomes in found if _failed(outcomes)]
    if bad:
        text = "; ".join(
            f"{entry.kind} {entry.name!r} of package {entry.origin} fails"
            f" {', '.join(o.check for o in failures)}"
            for entry, failures in bad
        )
        raise PluginError(f"{text}.")


debug_option(command)
