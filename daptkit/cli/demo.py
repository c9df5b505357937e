"""``daptkit demo``."""

from __future__ import annotations

import click

from daptkit.cli.lazy import debug_option
from daptkit.cli.options import device_options
from daptkit.cli.output import print_json


@click.command("demo", epilog="Example: daptkit demo --out daptkit-demo")
@click.option(
    "--out",
    metavar="DIR",
    default="daptkit-demo",
    show_default=True,
    help="Folder to write; new or empty.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    metavar="N",
    default=0,
    show_default=True,
    help="Seed of the images and of the training.",
)
@device_options
@click.option("--json", is_flag=True, help="Print the result as JSON.")
def command(out: str, seed: int, device: str, workers: int | None, json: bool) -> None:
    """Draw two synthetic sites and run the whole job on them, in a few minutes.

    Writes DIR/sites, two folders of synthetic images whose scanners and class frequencies differ,
    and DIR/run, the run with its report. Since the true classes are known, it ends with the true
    scores on the target before and after adapting.
    """
    from daptkit.recipes import demo
    from daptkit.train.progress import terminal_reporter

    result = demo(out, seed=seed, device=device, workers=workers, reporter=terminal_reporter())
    if json:
        print_json(result.data)
    else:
        click.echo(result.summary)


debug_option(command)
