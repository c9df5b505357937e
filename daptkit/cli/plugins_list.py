"""``daptkit plugins list``."""

from __future__ import annotations

import click

from daptkit.cli.lazy import debug_option
from daptkit.host import list_plugins
from daptkit.host.entry import GROUPS


@click.command("list")
@click.option("--kind", type=click.Choice(list(GROUPS.values())), help="List these alone.")
@click.option("--json", is_flag=True, help="Print the list as JSON.")
def command(kind: str | None, json: bool) -> None:
    """List every installed plugin and what is wrong with the broken ones.

    Plugins are imported in a child process, so a broken one spoils nothing but its own line.
    """
    from dataclasses import asdict

    from daptkit.cli.output import print_columns, print_json

    plugins = [p for p in list_plugins() if kind in (None, p.kind)]
    if json:
        print_json([asdict(p) for p in plugins])
    elif not plugins and kind is not None:
        click.echo(f"no {kind} plugins are installed")
    elif not plugins:
        click.echo("no plugins are installed; for example, pip install daptkit-dann")
    else:
        print_columns(
            ("NAME", "KIND", "PACKAGE", "STATUS", "SUMMARY OR REASON"),
            [
                (p.name, p.kind, f"{p.package} {p.version}", p.status, p.reason or p.summary)
                for p in plugins
            ],
        )


debug_option(command)
