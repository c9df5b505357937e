"""Click options made from options dataclasses."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from daptkit.plugin import scalar_type

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_DEVICE = (
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--workers",
        type=click.IntRange(0),
        metavar="N",
        help="Threads that decode images (the CPU count).",
    ),
)
_INFERENCE = (
    click.option(
        "--domain",
        type=click.Choice(["target", "source"]),
        default="target",
        show_default=True,
        help="Site the images come from; selects the prior.",
    ),
    click.option(
        "--aggregate",
        type=click.Choice(["patient", "study"]),
        help="One result for each patient or study: the mean of its images' probabilities.",
    ),
    *_DEVICE,
    click.option(
        "--skip-unreadable",
        type=click.IntRange(0),
        metavar="N",
        default=0,
        show_default=True,
        help="Tolerate and list up to this many unreadable images.",
    ),
    click.option(
        "--cache", metavar="DIR|off", help="Folder of decoded images, or off (the user's cache)."
    ),
)


def device_options(command: CommandT) -> CommandT:
    """Add the options that every command which decodes images and runs a model has."""
    return _decorated(command, _DEVICE)


def inference_options(command: CommandT) -> CommandT:
    """Add the options that every command which runs a trained model on a PATH has."""
    return _decorated(command, _INFERENCE)


def make_options(cls: type, prefix: str = "") -> list[click.Option]:
    """Make one click option for each field of an options dataclass.

    Field ``img_size`` becomes ``--img-size``; with the prefix ``"dann"`` it becomes
    ``--dann.img-size`` under the parameter name ``dann__img_size``. Numbers get click's range
    types, switches get ``--x/--no-x``, and fields that hold several values may be repeated.

    Args:
        cls: dataclass whose fields are made by :func:`daptkit.plugin.option`; others are left out.
        prefix: method name.
    """
    hints = typing.get_type_hints(cls)
    return [
        _make_option(f, hints[f.name], prefix)
        for f in dataclasses.fields(cls)
        if "help" in f.metadata
    ]


def parameter_name(field: str, prefix: str = "") -> str:
    """Return the name under which click hands over a field's value."""
    return f"{prefix}__{field}".replace("-", "_") if prefix else field


def given_values(ctx: click.Context, cls: type, prefix: str = "") -> dict[str, Any]:
    """Return the fields whose flags were given, with their values."""
    values = {}
    for f in dataclasses.fields(cls):
        name = parameter_name(f.name, prefix)
        source = ctx.get_parameter_source(name)
        if name in ctx.params and source not in (None, ParameterSource.DEFAULT):
            values[f.name] = ctx.params[name]
    return values


def flag_spelling(argument: str) -> str:
    """Write an argument's option name with dashes: ``--img_size=8`` is ``--img-size=8``."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _decorated(command: CommandT, options: Sequence[Callable[[CommandT], CommandT]]) -> CommandT:
    for decorate in reversed(options):
        command = decorate(command)
    return command


def _make_option(f: dataclasses.Field[Any], hint: Any, prefix: str) -> click.Option:
    kind, _ = scalar_type(hint)
    flag = f"{prefix}.{f.name}" if prefix else f.name
    flag = flag.replace("_", "-")
    declaration = f"--{flag}"
    if kind is bool:
        head, dot, tail = flag.rpartition(".")
        declaration = f"--{flag}/--{head}{dot}no-{tail}"
    extra: dict[str, Any] = {}
    if kind is not bool:
        extra["type"] = _click_type(kind, f.metadata)
        extra["metavar"] = f.metadata["metavar"] or {int: "N", float: "X"}.get(kind)
    return click.Option(
        [declaration, *f.metadata["flags"], parameter_name(f.name, prefix)],
        default=f.default,
        show_default=f.default not in ((), "", None),
        multiple=kind is tuple,
        help=f.metadata["help"],
        **extra,
    )


def _click_type(kind: type, metadata: Mapping[str, Any]) -> click.ParamType[Any]:
    if metadata["choices"]:
        return click.Choice(metadata["choices"])
    if kind is int:
        return _named(click.IntRange(metadata["low"], metadata["high"]), "whole number")
    if kind is float:
        return _named(click.FloatRange(metadata["low"], metadata["high"]), "number")
    return click.STRING


def _named(kind: click.ParamType[Any], name: str) -> click.ParamType[Any]:
    """Give a type the name that its messages call it by."""
    kind.name = name
    return kind
