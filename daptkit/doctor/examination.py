"""The whole examination: slow looks side by side, then the findings in order."""

from __future__ import annotations

import importlib.metadata
from concurrent.futures import ThreadPoolExecutor

from daptkit.doctor.attempts import attempt
from daptkit.doctor.check import Check, error
from daptkit.doctor.folders import check_cache, check_working_folder
from daptkit.doctor.gpus import LOOK, check_gpus, find_driver
from daptkit.doctor.machine import check_machine, check_python
from daptkit.doctor.packages import (
    check_daptkit,
    check_packages,
    installed_version,
    module_of,
    requirements,
)
from daptkit.doctor.plugins import check_environment, check_plugins, check_readers
from daptkit.doctor.torch_stack import NEEDS, STACK, TORCH, check_stack, reinstall

IMPORT_LIMIT = 60.0
"""Seconds that importing torch and what goes with it may take; a cold disk takes many."""


def examine(limit: float = IMPORT_LIMIT) -> list[Check]:
    """Look at everything that a run depends on.

    Args:
        limit: seconds for the imports of one child process.

    Returns:
        Findings, from the interpreter to the folders.
    """
    required, unread = _requirements()
    others = {name: text for name, text in required.items() if name not in STACK}
    modules = [module_of(name) for name in others]
    with ThreadPoolExecutor() as pool:
        stack = pool.submit(attempt, (*STACK, LOOK), needs={**NEEDS, LOOK: (TORCH,)}, limit=limit)
        rest = pool.submit(attempt, modules, needs={}, limit=limit)
        plugins = pool.submit(check_plugins)
        driver = pool.submit(find_driver)
    attempts = stack.result()
    torch_version = attempts[TORCH].version or installed_version(TORCH)
    return [
        check_python(),
        check_daptkit(),
        *check_stack(required, attempts),
        *check_packages(others, rest.result()),
        *unread,
        *check_gpus(driver.result(), attempts[LOOK], reinstall(required, torch_version)),
        check_machine(),
        *plugins.result(),
        check_readers(),
        check_working_folder(),
        check_cache(),
        check_environment(),
    ]


def _requirements() -> tuple[dict[str, str], list[Check]]:
    """Return the required packages, and why they cannot be read where they cannot."""
    try:
        return requirements(), []
    except importlib.metadata.PackageNotFoundError:
        return {}, []  # check_daptkit tells
    except ImportError:
        return {}, [error("packaging", "not installed", "pip install packaging")]
