"""The child process of the doctor: does one thing after the other and reports each.

``main`` stops after the first failure; what comes next may depend on it, and the parent knows.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any

from daptkit.host.isolation import describe


def main(answers: int, items: Sequence[str]) -> None:
    """Import modules or call functions, and write one line of JSON for each that was tried.

    Args:
        answers: file descriptor to write to.
        items: ``"module"`` to import it, ``"module:function"`` to call the function too.
    """
    warnings.simplefilter("ignore")
    for item in items:
        row = _attempt(item)
        os.write(answers, (json.dumps(row) + "\n").encode())
        if row["reason"]:
            break
    os._exit(0)  # threads and exit handlers of what was imported cannot hold the process up


def _attempt(item: str) -> dict[str, Any]:
    module_name, _, function = item.partition(":")
    row: dict[str, Any] = {"reason": "", "absent": False, "version": "", "details": {}}
    try:
        module = importlib.import_module(module_name)
        row["version"] = _version(module)
        if function:
            row["details"] = getattr(module, function)()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code may raise anything
        row["reason"] = describe(error)
        row["absent"] = isinstance(error, ModuleNotFoundError) and error.name == module_name
    return row


def _version(module: object) -> str:
    """Return ``__version__``; not every module has one, and some make it an object."""
    found = getattr(module, "__version__", "")
    return found if isinstance(found, str) else ""
