"""A click group whose commands are imported when they are called, not when they are listed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TypeVar

import click

from daptkit.errors import UsageError, did_you_mean

CommandT = TypeVar("CommandT", bound=click.Command)

_EXIT_CODES = (
    "Exit codes: 0 done, 1 failure, 2 usage, 3 data invalid, 4 plugin fault, 130 interrupted, "
    "143 terminated."
)


def debug_option(command: CommandT) -> CommandT:
    """Add ``--debug``, which :func:`daptkit.cli.main.run` looks for among the arguments."""
    command.params.append(
        click.Option(
            ["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."
        )
    )
    return command


class LazyGroup(click.Group):
    """A group that knows its commands by ``"module:attribute"`` and a line of help.

    Args:
        name: name of the group.
        help: help text.
        commands: command name to (``"module:attribute"``, line of help).
    """

    def __init__(self, name: str, *, help: str, commands: Mapping[str, tuple[str, str]]) -> None:
        super().__init__(name, help=help, epilog=_EXIT_CODES)
        self._homes = dict(commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Show the help on stderr where no command is named."""
        if not args:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(UsageError.exit_code)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in their order of use."""
        return list(self._homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name not in self._homes:
            return None
        module, _, attribute = self._homes[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest the closest name."""
        if args and args[0] not in self._homes and not args[0].startswith("-"):
            known = ", ".join(self._homes)
            hint = did_you_mean(args[0], self._homes)
            raise click.UsageError(f"no such command {args[0]!r} (have: {known}).{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._homes.items()])
