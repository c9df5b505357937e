"""``daptkit evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from daptkit.cli.lazy import debug_option
from daptkit.cli.options import inference_options
from daptkit.cli.output import print_json, print_scores, to_json
from daptkit.errors import UsageError


@click.command("evaluate", epilog="Example: daptkit evaluate run --data labelled --split test")
@click.argument("run")
@click.option("--data", required=True, metavar="PATH", help="Labelled images.")
@click.option(
    "--split", metavar="NAME", help="Split to score, or all (test where it exists, else all)."
)
@click.option(
    "--bootstrap",
    type=click.IntRange(0),
    metavar="N",
    default=1000,
    show_default=True,
    help="Resamples behind each interval; 0 for none.",
)
@inference_options
@click.option("--out", metavar="FILE", help="Also write the scores to this file, as JSON.")
@click.option("--json", is_flag=True, help="Print the scores as JSON.")
def command(
    run: str,
    data: str,
    split: str | None,
    bootstrap: int,
    domain: str,
    aggregate: str | None,
    device: str,
    workers: int | None,
    skip_unreadable: int,
    cache: str | None,
    out: str | None,
    json: bool,
) -> None:
    """Score the model of RUN, a run folder of 'daptkit adapt', on labelled data."""
    from daptkit.recipes import evaluate
    from daptkit.train.progress import terminal_reporter

    scores = evaluate(
        run,
        data,
        split=split,
        domain=domain,
        aggregate=aggregate,
        n_bootstrap=bootstrap,
        device=device,
        workers=workers,
        skip_unreadable=skip_unreadable,
        cache=cache,
        reporter=terminal_reporter(),
    )
    if out is not None:
        _write(Path(out), to_json(scores) + "\n")
    if json:
        print_json(scores)
    else:
        print_scores(scores)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write --out {path}: {error.strerror}.") from error


debug_option(command)
