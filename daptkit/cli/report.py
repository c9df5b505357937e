"""``daptkit report``."""

from __future__ import annotations

import click

from daptkit.cli.lazy import debug_option
from daptkit.cli.options import device_options
from daptkit.cli.output import print_json


@click.command("report", epilog="Example: daptkit report run")
@click.argument("run")
@click.option(
    "--remeasure",
    is_flag=True,
    help="Measure everything on the page again, from the run's models and images.",
)
@click.option(
    "--trust", is_flag=True, help="Load a weights file that carries Python objects; code runs."
)
@device_options
@click.option("--json", is_flag=True, help="Print the path and every number on the page as JSON.")
def command(
    run: str, remeasure: bool, trust: bool, device: str, workers: int | None, json: bool
) -> None:
    """Build report.html of RUN, a run folder of 'daptkit adapt'.

    The page is made from report.json and embedding.csv in the run folder. Where they are missing,
    or with --remeasure, they are measured first.
    """
    from daptkit.recipes import build_report
    from daptkit.train.progress import terminal_reporter

    page = build_report(
        run,
        remeasure=remeasure,
        device=device,
        workers=workers,
        trust=trust,
        reporter=terminal_reporter(),
    )
    if not json:
        click.echo(page)
        return
    from daptkit.report.page import read_report
    from daptkit.run import RunFolder

    print_json({"report": str(page), **read_report(RunFolder(page.parent))})


debug_option(command)
