"""``daptkit plugins new``."""

from __future__ import annotations

import click

from daptkit.cli.lazy import debug_option
from daptkit.host.entry import GROUPS


@click.command("new")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(list(GROUPS.values())),
    default="method",
    show_default=True,
    help="What the plugin is.",
)
@click.option("--out", metavar="DIR", help="New or empty folder (daptkit-NAME).")
@click.option("--json", is_flag=True, help="Print what was written as JSON.")
def command(name: str, kind: str, out: str | None, json: bool) -> None:
    """Write a package of one plugin whose tests pass as they are written.

    It holds the plugin, working, with its tests, README, and a file for CI: change it bit by bit
    into your own.
    """
    from dataclasses import asdict

    from daptkit.cli.output import print_json
    from daptkit.scaffold import new_plugin

    written = new_plugin(name, kind=kind, out=out)
    if json:
        print_json(asdict(written))
        return
    click.echo(f"{written.folder} holds {written.package}:")
    for file in written.files:
        click.echo(f"  {file}")
    click.echo(f"Next: cd {written.folder} && pip install -e '.[test]' && pytest")


debug_option(command)
