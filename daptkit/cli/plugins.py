"""``daptkit plugins``."""

from __future__ import annotations

from daptkit.cli.lazy import LazyGroup, debug_option

group = debug_option(
    LazyGroup(
        "plugins",
        help="Show, check and start plugins.",
        commands={
            "list": (
                "daptkit.cli.plugins_list:command",
                "List every installed plugin and what is wrong with the broken ones.",
            ),
            "check": (
                "daptkit.cli.plugins_check:command",
                "Run the conformance checks of a plugin.",
            ),
            "new": ("daptkit.cli.plugins_new:command", "Write a package to start a plugin from."),
        },
    )
)
