"""``daptkit plugins``."""

from __future__ import annotations

from daptkit.cli.lazy import LazyGroup, debug_option

group = debug_option(
    LazyGroup(
        "plugins",
        help="Show the installed plugins.",
        commands={
            "list": (
                "daptkit.cli.plugins_list:command",
                "List every installed plugin and what is wrong with the broken ones.",
            ),
        },
    )
)
