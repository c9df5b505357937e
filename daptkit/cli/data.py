"""``daptkit data``."""

from __future__ import annotations

from daptkit.cli.lazy import LazyGroup, debug_option

group = debug_option(
    LazyGroup(
        "data",
        help="Check, simulate and cache images.",
        commands={
            "check": (
                "daptkit.cli.data_check:command",
                "Read every image once and list what is wrong.",
            ),
            "simulate": (
                "daptkit.cli.data_simulate:command",
                "Make a second site whose shift is known.",
            ),
            "cache": (
                "daptkit.cli.data_cache:command",
                "Show or clear the cache of decoded images.",
            ),
        },
    )
)
