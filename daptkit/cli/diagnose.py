"""``daptkit diagnose``: its options are those of ``adapt`` on data and model, and its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from daptkit.cli.lazy import debug_option
from daptkit.cli.options import flag_spelling, given_values, make_options
from daptkit.cli.output import print_json
from daptkit.config import AdaptConfig
from daptkit.diagnoseconfig import SHARED, DiagnoseOptions

_HELP = {
    "source_split": "Split of the source compared (train where it exists, else all).",
    "target_split": "Split of the target compared (train where it exists, else all).",
}
"""Where ``adapt`` speaks of what it does with an option."""


class DiagnoseCommand(click.Command):
    """A command that takes ``--img_size`` for ``--img-size``, as ``adapt`` does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse with dashes in the names of options."""
        return super().parse_args(ctx, [flag_spelling(a) for a in args])


def _options() -> list[click.Parameter]:
    shared = [o for o in make_options(AdaptConfig) if o.name in SHARED]
    for one in shared:
        one.help = _HELP.get(str(one.name), one.help)
    order = {name: place for place, name in enumerate(SHARED)}
    shared.sort(key=lambda o: order[str(o.name)])
    return [
        *shared,
        *make_options(DiagnoseOptions),
        click.Option(["--json"], is_flag=True, help="Print every figure as JSON."),
    ]


def _run(json: bool, **_: Any) -> None:
    ctx = click.get_current_context()
    values = {
        name: value
        for cls in (AdaptConfig, DiagnoseOptions)
        for name, value in given_values(ctx, cls).items()
        if name in SHARED or name in {f.name for f in dataclasses.fields(DiagnoseOptions)}
    }
    from daptkit.recipes import diagnose
    from daptkit.train.progress import terminal_reporter

    result = diagnose(reporter=terminal_reporter(), **values)
    if json:
        print_json(result.data)
        return
    click.echo(result.summary)
    if result.page is not None:
        click.echo(f"\npage: {result.page}")


command = debug_option(
    DiagnoseCommand(
        "diagnose",
        callback=_run,
        params=_options(),
        help="Say which shift there is between two sites, and which installed method is for it."
        "\n\nTests whole patients for a difference of the sites, of class frequencies and of the"
        " images of a class; measures what looks different. No target label is read, but for an"
        " audit that is asked for by --target-labels.",
        epilog="Example: daptkit diagnose --source site_a --target site_b --out diagnosis",
    )
)
