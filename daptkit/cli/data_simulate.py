"""``daptkit data simulate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from daptkit.cli.lazy import debug_option
from daptkit.cli.options import given_values, make_options
from daptkit.cli.output import print_json
from daptkit.config import AdaptConfig
from daptkit.errors import UsageError
from daptkit.scanner import PRESETS, ScannerShift

_SHARED = ("seed", "frames", "window", "reader_options", "skip_unreadable", "workers")
"""Options that mean here what they mean to ``adapt``."""


def parse_prior(texts: Sequence[str]) -> dict[str, float]:
    """Read ``CLASS=P`` texts.

    Raises:
        UsageError: another form, or a class twice.
    """
    prior: dict[str, float] = {}
    for text in texts:
        name, _, share = text.rpartition("=")
        value = _number(share)
        if not name or value is None:
            raise UsageError(f"--prior takes CLASS=P, such as pneumonia=0.05, not {text!r}.")
        if name in prior:
            raise UsageError(f"--prior names the class {name!r} twice.")
        prior[name] = value
    return prior


def parse_redefinitions(texts: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Read ``A=B`` and ``A=B:SHARE`` texts into A to (B, share); without a share it is 1.

    Raises:
        UsageError: another form, or a class A twice.
    """
    redefined: dict[str, tuple[str, float]] = {}
    for text in texts:
        old, _, rest = text.partition("=")
        new, _, share = rest.rpartition(":")
        value = _number(share) if new else None
        if value is None:
            new, value = rest, 1.0
        if not old or not new:
            raise UsageError(
                f"--redefine takes A=B or A=B:SHARE, such as benign=normal:0.3, not {text!r}."
            )
        if old in redefined:
            raise UsageError(f"--redefine names the class {old!r} twice.")
        redefined[old] = (new, value)
    return redefined


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _run(
    path: str,
    out: str,
    preset: str | None,
    prior: Sequence[str],
    label_noise: float,
    redefine: Sequence[str],
    split: str | None,
    json: bool,
    **others: Any,
) -> None:
    shift = given_values(click.get_current_context(), ScannerShift)
    priors, redefinitions = parse_prior(prior), parse_redefinitions(redefine)
    from daptkit.recipes import simulate
    from daptkit.train.progress import terminal_reporter

    result = simulate(
        path,
        out=out,
        preset=preset,
        shift=shift,
        prior=priors,
        label_noise=label_noise,
        redefine=redefinitions,
        split=split,
        reporter=terminal_reporter(),
        **{name: others[name] for name in _SHARED},
    )
    if json:
        print_json(result.data)
    else:
        click.echo(result.summary)


command = debug_option(
    click.Command(
        "simulate",
        callback=_run,
        params=[
            click.Argument(["path"]),
            click.Option(
                ["--out"], required=True, metavar="DIR", help="Folder to write; new or empty."
            ),
            click.Option(
                ["--preset"], metavar="NAME", help=f"A site's equipment: {', '.join(PRESETS)}."
            ),
            *make_options(ScannerShift),
            click.Option(
                ["--prior"],
                multiple=True,
                metavar="CLASS=P",
                help="Share of a class; may be repeated. The other classes share the rest in their"
                " old proportions.",
            ),
            click.Option(
                ["--label-noise"],
                type=click.FloatRange(0.0, 1.0),
                metavar="P",
                default=0.0,
                help="Share of the labels that is replaced by another class.",
            ),
            click.Option(
                ["--redefine"],
                multiple=True,
                metavar="A=B[:SHARE]",
                help="Label the images of class A, or a share of them, as B; may be repeated.",
            ),
            click.Option(["--split"], metavar="NAME", help="Split to use (all)."),
            *(option for option in make_options(AdaptConfig) if option.name in _SHARED),
            click.Option(["--json"], is_flag=True, help="Print what was done as JSON."),
        ],
        help="Make a second site out of PATH, any labelled images, with a shift that is known."
        "\n\nWrites DIR/images, DIR/manifest.csv with the new site's labels, and DIR/truth.json"
        " with everything that was done. Single values of the scanner win over the preset.",
        epilog="Example: daptkit data simulate site_a --preset low-dose --prior pneumonia=0.05"
        " --out site_b",
    )
)
