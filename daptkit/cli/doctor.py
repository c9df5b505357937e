"""``daptkit doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from daptkit.cli.lazy import debug_option

if TYPE_CHECKING:
    from daptkit.doctor import Check

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command("doctor", epilog="Exit code 1 when no run could work; warnings do not count.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Time that the imports of torch and of the other packages may take.",
)
@click.option("--json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def command(ctx: click.Context, timeout: float, json: bool) -> None:
    """Say what is installed here, what is wrong with it and what to do about it.

    Looks at Python, torch and the other packages, GPUs, plugins, disk and cache. Everything that
    may hang or crash is tried in a process of its own; nothing is changed.
    """
    from dataclasses import asdict

    from daptkit.cli.output import print_json
    from daptkit.doctor import can_run, examine

    checks = examine(timeout)
    works = can_run(checks)
    if json:
        print_json({"ok": works, "checks": [asdict(check) for check in checks]})
    else:
        _print_for_people(checks, works=works)
    ctx.exit(0 if works else 1)


def _print_for_people(checks: Sequence[Check], *, works: bool) -> None:
    wide_status = max(len(check.status) for check in checks)
    wide_name = max(len(check.name) for check in checks)
    for check in checks:
        status = click.style(check.status.ljust(wide_status), fg=_COLOURS[check.status])
        click.echo(f"{status}  {check.name.ljust(wide_name)}  {check.finding}")
        if check.cure:
            click.echo(f"{' ' * (wide_status + wide_name + 4)}-> {check.cure}")
    click.echo(f"\n{_conclusion(checks, works=works)}")


def _conclusion(checks: Sequence[Check], *, works: bool) -> str:
    warned = [check.name for check in checks if check.status == "warning"]
    if not works:
        wrong = ", ".join(check.name for check in checks if check.status == "error")
        return f"No run can work yet: repair {wrong}."
    return "Runs can work" + (f"; look at {', '.join(warned)}." if warned else ".")


debug_option(command)
