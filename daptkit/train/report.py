"""What methods report of themselves at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from daptkit.errors import PluginError
from daptkit.method import Method
from daptkit.train.guard import plugin_guard


def method_reports(
    methods: Mapping[str, Method], packages: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Return the report of each method as values that JSON can hold.

    Args:
        methods: methods by name.
        packages: ``"package version"`` of each, for messages.

    Raises:
        PluginError: a report cannot be made, or holds tensors or other objects.
    """
    return {name: _report(name, method, packages[name]) for name, method in methods.items()}


def _report(name: str, method: Method, package: str) -> dict[str, Any]:
    with plugin_guard(name, package, "report()"):
        made = method.report()
        if not isinstance(made, dict):
            raise PluginError(
                f"method '{name}' ({package}): report() returned {type(made).__name__} instead of"
                " a dict."
            )
        # A round trip: what cannot be stored is found here, where its author is known.
        plain: dict[str, Any] = json.loads(json.dumps(made))
        return plain
