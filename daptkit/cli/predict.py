"""``daptkit predict``."""

from __future__ import annotations

import click

from daptkit.cli.lazy import debug_option


@click.command("predict", epilog="Example: daptkit predict run --images new --out predictions.csv")
@click.argument("run")
@click.option("--images", required=True, metavar="PATH", help="Images to predict.")
@click.option("--out", required=True, metavar="FILE", help="CSV file to write.")
@click.option(
    "--domain",
    type=click.Choice(["target", "source"]),
    default="target",
    show_default=True,
    help="Site the images come from: its prior and image statistics are used.",
)
@click.option(
    "--skip-unreadable",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Tolerate and list up to this many unreadable images.",
)
def command(run: str, images: str, out: str, domain: str, skip_unreadable: int) -> None:
    """Predict images with the model of RUN, a run folder of 'daptkit adapt'."""
    from daptkit.recipes import predict
    from daptkit.train.progress import terminal_reporter

    path = predict(
        run,
        images,
        out=out,
        domain=domain,
        skip_unreadable=skip_unreadable,
        reporter=terminal_reporter(),
    )
    click.echo(str(path))


debug_option(command)
