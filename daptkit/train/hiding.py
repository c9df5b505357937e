"""Values of options as they may be written anywhere: without files and folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAMES_A_FILE = re.compile("path|file|folder|dir(ectory)?$|checkpoint|url", re.IGNORECASE)
_HIDDEN = "(a path)"


def without_path(name: str, value: Any) -> Any:
    """Hide what is, or by its name may be, a file or a folder.

    Args:
        name: of the option.
        value: plain value, or a list or mapping of such.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {key: without_path(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_path(name, item) for item in value]
    is_plain = isinstance(value, str) and not {"/", "\\"} & set(value)
    return value if is_plain and not _NAMES_A_FILE.search(name) else _HIDDEN


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without those that name a file or a folder, tuples as lists."""
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    return {name: value for name, value in listed.items() if without_path(name, value) == value}
