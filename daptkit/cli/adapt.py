"""``daptkit adapt``: its options are the fields of the configuration and of the named methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import click

from daptkit.cli.lazy import debug_option
from daptkit.cli.options import flag_spelling, given_values, make_options, parameter_name
from daptkit.cli.output import print_json
from daptkit.config import AdaptConfig, from_toml, read_file, resolve_config
from daptkit.errors import UsageError, did_you_mean
from daptkit.host import method_options
from daptkit.run import RunFolder

SECTIONS = {
    "Data": (
        "source",
        "target",
        "source_split",
        "target_split",
        "val_fraction",
        "frames",
        "window",
        "reader_options",
        "skip_unreadable",
        "allow_patient_overlap",
        "cache",
    ),
    "Method": ("method", "finetune", "bn", "from_scratch", "decide", "select", "guard"),
    "Model": (
        "model",
        "model_kwargs",
        "pretrained",
        "pretrained_path",
        "init_from",
        "trust",
        "classes",
        "img_size",
        "in_chans",
        "mean",
        "std",
        "bottleneck",
        "dropout",
    ),
    "Training": (
        "epochs",
        "batch_size",
        "grad_accum_steps",
        "auto_batch",
        "opt",
        "sched",
        "lr",
        "backbone_lr_scale",
        "layer_decay",
        "weight_decay",
        "clip_grad",
        "aug",
        "trunk_views",
        "seed",
        "device",
        "amp",
        "amp_dtype",
        "compile",
        "workers",
    ),
    "Output": ("out", "resume", "report", "log_interval"),
}
"""Sections of ``--help`` and the configuration's fields in each."""

METHODS_KEY = "daptkit.methods"


class AdaptCommand(click.Command):
    """A command whose parser is built per call, with the options of the methods it names."""

    sections: ClassVar[Mapping[str, tuple[str, ...]]] = SECTIONS
    several: ClassVar[bool] = False
    """Whether ``-m`` may be given several times."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find the named methods first, then parse with their options."""
        asks_for_help = any(name in args for name in ctx.help_option_names)
        arguments = [flag_spelling(a) for a in args]
        ctx.meta[METHODS_KEY] = methods = named_methods(ctx, arguments, several=self.several)
        if not asks_for_help:
            _refuse_foreign_options(arguments, methods)
        return super().parse_args(ctx, arguments)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the fixed options and those of the named methods."""
        methods: dict[str, type] = ctx.meta.get(METHODS_KEY, {})
        extra = [o for name, cls in methods.items() for o in make_options(cls, name)]
        return [*super().get_params(ctx), *extra]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in sections, the methods' own last."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in self.sections}
        methods: dict[str, type] = ctx.meta.get(METHODS_KEY, {})
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = _section(str(parameter.name), methods, self.sections)
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def named_methods(ctx: click.Context, args: list[str], *, several: bool) -> dict[str, type]:
    """Return the options class of each method that ``-m`` or the configuration file names.

    Args:
        ctx: of the command.
        args: its arguments.
        several: whether ``-m`` may be given several times.

    Raises:
        UsageError: two ``-m``, an unreadable file or an unknown method.
        PluginError: a named plugin is broken.
    """
    scout = click.Command(
        ctx.command.name,
        params=[
            click.Option(["-m", "--method", "method"], multiple=True),
            click.Option(["--config", "config"]),
        ],
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )
    found = scout.make_context(ctx.info_name, list(args), parent=ctx.parent).params
    if len(found["method"]) > 1 and not several:
        joined = "+".join(found["method"])
        raise UsageError(f"adapt takes one -m; methods of one run are joined: -m {joined}.")
    if found["method"]:
        return {n: cls for text in found["method"] for n, cls in method_options(text).items()}
    if found["config"]:
        values = from_toml(read_file(Path(found["config"])), found["config"])
        return method_options(str(values.get("method", AdaptConfig.method)))
    return {}


def _refuse_foreign_options(args: list[str], methods: dict[str, type]) -> None:
    """Say which method an option such as ``--dann.weight`` belongs to when -m leaves it out."""
    known = {name.replace("_", "-"): name for name in methods}
    for argument in args:
        method, dot, _ = argument.removeprefix("--").partition("=")[0].partition(".")
        if argument.startswith("--") and dot and method not in known:
            raise UsageError(
                f"option {argument.partition('=')[0]!r} belongs to method {method!r}, which -m "
                f"does not name.{did_you_mean(method, known)}"
            )


def _section(name: str, methods: dict[str, type], sections: Mapping[str, tuple[str, ...]]) -> str:
    for method in methods:
        if name.startswith(parameter_name("", method)):
            return f"Method {method}"
    return next((title for title, names in sections.items() if name in names), "Output")


def _run(config: str | None, json: bool, **_: object) -> None:
    ctx = click.get_current_context()
    flags = given_values(ctx, AdaptConfig)
    methods: dict[str, type] = ctx.meta[METHODS_KEY]
    flags["method_options"] = {n: given_values(ctx, cls, n) for n, cls in methods.items()}
    resolved = resolve_config(flags, Path(config) if config else None, method_options)
    from daptkit.recipes import adapt
    from daptkit.train.progress import terminal_reporter

    result = adapt(resolved, reporter=terminal_reporter())
    if not result.leads:
        return
    if json:
        print_json(result.data)
    else:
        click.echo(result.summary)
        if resolved.report:
            click.echo(f"\nreport: {RunFolder(result.out).report}")


command = debug_option(
    AdaptCommand(
        "adapt",
        callback=_run,
        params=[
            *make_options(AdaptConfig),
            click.Option(
                ["--config"],
                metavar="FILE",
                help="Configuration in TOML, such as a run's run.toml; flags win over it.",
            ),
            click.Option(["--json"], is_flag=True, help="Print the result as JSON."),
        ],
        help="Fit a model for the target site from labelled source images and unlabelled target "
        "images.\n\nAdd -m METHOD to --help to see the method's own options; 'daptkit plugins "
        "list' names the methods.",
        epilog="Example: daptkit adapt --source site_a --target site_b -m dann+bbse --out run",
    )
)
