"""Entry point of ``daptkit``: the commands, and what a failure looks like."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import click

from daptkit import __version__
from daptkit.cli.lazy import LazyGroup, debug_option
from daptkit.errors import DaptkitError, did_you_mean

INTERRUPTED = 130

cli = LazyGroup(
    "daptkit",
    help="Adapt a model from a labelled source site to the unlabelled images of a target site.",
    commands={
        "adapt": ("daptkit.cli.adapt:command", "Fit a model for the target site: the main job."),
        "diagnose": ("daptkit.cli.diagnose:command", "Which shift is it, and which method fits."),
        "compare": ("daptkit.cli.compare:command", "Several methods and seeds, side by side."),
        "predict": ("daptkit.cli.predict:command", "Predict images with the model of a run."),
        "evaluate": ("daptkit.cli.evaluate:command", "Score a run on labelled data."),
        "report": ("daptkit.cli.report:command", "Build the report page of a run again."),
        "data": ("daptkit.cli.data:group", "Check, simulate and cache images."),
        "demo": ("daptkit.cli.demo:command", "Two synthetic sites, the whole job, in minutes."),
        "doctor": ("daptkit.cli.doctor:command", "What is installed, and what is wrong with it."),
        "plugins": ("daptkit.cli.plugins:group", "Show, check and start plugins."),
    },
)
cli = click.version_option(__version__, prog_name="daptkit")(debug_option(cli))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    if "WORLD_SIZE" in os.environ:
        # DistributedDataParallel's notice on unused parameters, from each process and past Python's
        # own filter of warnings; torch reads the variable when it is imported.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; messages go to stderr.

    0 done, 1 failure, 2 usage, 3 data invalid, 4 plugin fault, 130 interrupted, 143 terminated.
    """
    debug = "--debug" in arguments
    try:
        code = cli.main(args=list(arguments), prog_name="daptkit", standalone_mode=False)
    except click.ClickException as error:
        return _fail(f"error: {_in_one_line(error)}", error.exit_code, debug=debug)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", INTERRUPTED, debug=False)
    except DaptkitError as error:
        if error.told_elsewhere:
            return error.exit_code
        return _fail(f"error: {error}", error.exit_code, debug=debug)
    except BrokenPipeError:
        # The reader of our output left, as in 'daptkit ... | head'; nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - last resort: one line instead of a traceback
        hint = "" if debug else "; rerun with --debug"
        return _fail(f"internal error: {type(error).__name__}: {error}{hint}", 1, debug=debug)
    return code if isinstance(code, int) else 0


def _in_one_line(error: click.ClickException) -> str:
    """Say what click found wrong with the arguments, and where to look."""
    text = error.format_message()
    if isinstance(error, click.NoSuchOption):
        hint = did_you_mean(error.option_name, error.possibilities or ())
        text = f"no such option {error.option_name!r}.{hint}"
    text = " ".join((text[:1].lower() + text[1:]).split())
    ctx = getattr(error, "ctx", None)
    text += "" if text.endswith((".", "?")) else "."
    return text if ctx is None else f"{text} See '{ctx.command_path} --help'."


def _fail(message: str, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"daptkit: {message}", file=sys.stderr)
    return code
