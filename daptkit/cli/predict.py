"""``daptkit predict``."""

from __future__ import annotations

import click

from daptkit.cli.lazy import debug_option
from daptkit.cli.options import inference_options


@click.command("predict", epilog="Example: daptkit predict run --images new --out predictions.csv")
@click.argument("run")
@click.option("--images", required=True, metavar="PATH", help="Images to predict.")
@click.option("--out", required=True, metavar="FILE", help="CSV file to write.")
@inference_options
def command(
    run: str,
    images: str,
    out: str,
    domain: str,
    aggregate: str | None,
    device: str,
    workers: int | None,
    skip_unreadable: int,
    cache: str | None,
) -> None:
    """Predict images with the model of RUN, a run folder of 'daptkit adapt'."""
    from daptkit.recipes import predict
    from daptkit.train.progress import terminal_reporter

    path = predict(
        run,
        images,
        out=out,
        domain=domain,
        aggregate=aggregate,
        device=device,
        workers=workers,
        skip_unreadable=skip_unreadable,
        cache=cache,
        reporter=terminal_reporter(),
    )
    click.echo(str(path))


debug_option(command)
