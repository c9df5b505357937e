"""``daptkit compare``: the options of ``adapt``, ``-m`` repeated, and a number of seeds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import click

from daptkit.cli.adapt import METHODS_KEY, SECTIONS, AdaptCommand
from daptkit.cli.lazy import debug_option
from daptkit.cli.options import given_values, make_options
from daptkit.cli.output import print_json
from daptkit.config import AdaptConfig, from_toml, read_file

_OWN = frozenset({"guard", "method", "out", "report", "resume", "seed"})


class CompareCommand(AdaptCommand):
    """``adapt``'s command for several ``-m``, with the options of each of these methods."""

    sections: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **SECTIONS,
        "Method": (*SECTIONS["Method"], "seeds"),
        "Output": (*SECTIONS["Output"], "target_labels"),
    }
    several = True


def _run(
    config: str | None, json: bool, seeds: int, target_labels: str | None, **_: object
) -> None:
    ctx = click.get_current_context()
    flags = given_values(ctx, AdaptConfig)
    methods = list(flags.pop("method", ()))
    if not methods and config is not None:
        # The method of the file, as 'adapt' takes it.
        stored = from_toml(read_file(Path(config)), config)
        methods = [str(stored["method"])] if "method" in stored else []
    classes: dict[str, type] = ctx.meta[METHODS_KEY]
    flags["method_options"] = {n: given_values(ctx, cls, n) for n, cls in classes.items()}
    from daptkit.recipes import compare
    from daptkit.train.progress import terminal_reporter

    result = compare(
        methods,
        seeds=seeds,
        target_labels=target_labels,
        file=config,
        reporter=terminal_reporter(),
        **flags,
    )
    if json:
        print_json(result.data)
    else:
        click.echo(result.summary)
        chosen = result.data["choice"]["recommended"]
        if chosen is not None:
            click.echo(f"\nits runs: {result.out / 'runs' / f'{chosen}-seed*'}", nl=False)
        click.echo(f"\npage: {result.out / 'compare.html'}")
    if result.error is not None:
        raise result.error


command = debug_option(
    CompareCommand(
        "compare",
        callback=_run,
        params=[
            *(o for o in make_options(AdaptConfig) if o.name not in _OWN),
            click.Option(
                ["-m", "--method", "method"],
                multiple=True,
                metavar="NAME[+NAME]",
                help="A method to compare, or several joined by '+'; may be repeated. none,"
                " source-only, is always compared.",
            ),
            click.Option(
                ["--seeds"],
                type=click.IntRange(1, 1000),
                metavar="N",
                default=3,
                show_default=True,
                help="Runs of each method, with seeds --seed, --seed + 1 and so on.",
            ),
            click.Option(
                ["--seed"],
                type=click.IntRange(0, 2**31 - 1),
                metavar="N",
                default=0,
                show_default=True,
                help="First seed of everything random.",
            ),
            click.Option(
                ["--target-labels"],
                metavar="PATH",
                help="Labelled target images: true scores, shown apart; they choose nothing.",
            ),
            click.Option(["--out"], metavar="DIR", default="", help="Folder to write."),
            click.Option(
                ["--resume/--no-resume"],
                default=False,
                show_default=True,
                help="Continue the comparison in --out; methods and seeds may be added.",
            ),
            click.Option(
                ["--report/--no-report"],
                default=False,
                show_default=True,
                help="Also write the report of every run.",
            ),
            click.Option(
                ["--config"],
                metavar="FILE",
                help="Configuration in TOML, such as a run's run.toml; flags win over it.",
            ),
            click.Option(["--json"], is_flag=True, help="Print the result as JSON."),
        ],
        help="Compare methods over several seeds on the same images, splits and options.\n\nEvery"
        " method and seed is a run of 'daptkit adapt' with its options. No target label is read,"
        " but by --target-labels, whose scores stand apart and choose nothing.",
        epilog="Example: daptkit compare --source site_a --target site_b -m dann -m coral+bbse"
        " --seeds 3 --out cmp",
    )
)
