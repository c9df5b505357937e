"""``daptkit data check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from daptkit.cli.lazy import debug_option
from daptkit.cli.options import make_options
from daptkit.cli.output import print_json
from daptkit.config import AdaptConfig
from daptkit.errors import DataError
from daptkit.run import write_json

_SHARED = ("frames", "reader_options", "skip_unreadable", "allow_patient_overlap", "workers")
"""Options that mean here what they mean to ``adapt``."""


def _run(
    path: str,
    target: str | None,
    role: str,
    write_manifest: str | None,
    salt_file: str | None,
    out: str | None,
    json: bool,
    **shared: Any,
) -> None:
    from daptkit.cli.data_check_text import print_found
    from daptkit.recipes import check_data
    from daptkit.train.progress import terminal_reporter

    found = check_data(
        path,
        target=target,
        role=role,
        manifest=write_manifest,
        salt_file=salt_file,
        reporter=terminal_reporter(),
        **shared,
    )
    if out is not None:
        write_json(Path(out), found)
    if json:
        print_json(found)
    else:
        print_found(found)
    click.get_current_context().exit(0 if found["ok"] else DataError.exit_code)


command = debug_option(
    click.Command(
        "check",
        callback=_run,
        params=[
            click.Argument(["path"]),
            click.Option(
                ["--target"], metavar="PATH", help="Images of the target, to be checked beside."
            ),
            click.Option(
                ["--as", "role"],
                type=click.Choice(["auto", "source", "target"]),
                default="auto",
                show_default=True,
                help="What PATH is: the labelled source, or a target; auto looks for labels.",
            ),
            *(option for option in make_options(AdaptConfig) if option.name in _SHARED),
            click.Option(
                ["--write-manifest"],
                metavar="FILE",
                help="New manifest to write of the readable images of PATH; patient, study and"
                " series of DICOM files as salted hashes.",
            ),
            click.Option(
                ["--salt-file"],
                metavar="FILE",
                help="Salt of the hashes, the same for every site (the user's own).",
            ),
            click.Option(["--out"], metavar="FILE", help="Also write what was found, as JSON."),
            click.Option(["--json"], is_flag=True, help="Print what was found as JSON."),
        ],
        help="Read every image of PATH once and list what is there and what is wrong.\n\nPATH is a"
        " folder, a manifest or an .npz. Errors are what adapt would refuse; warnings are not.",
        epilog="Exit code 3 when there are errors. Example: daptkit data check site_a --target"
        " site_b",
    )
)
