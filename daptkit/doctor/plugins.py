"""Plugins, optional readers and the environment variables that steer them."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from daptkit.doctor.check import Check, error, fine, warning
from daptkit.errors import DaptkitError, did_you_mean
from daptkit.host import list_plugins

if TYPE_CHECKING:
    from daptkit.host import PluginStatus

VARIABLES = (
    "DAPTKIT_CACHE",
    "DAPTKIT_CACHE_LIMIT",
    "DAPTKIT_DISABLE",
    "DAPTKIT_PLUGIN_TIMEOUT",
    "DAPTKIT_TEST_DATA",
)
"""Environment variables that daptkit or its tests read."""

_FORMATS = {
    "pydicom": "DICOM",
    "pylibjpeg": "compressed DICOM",
    "nibabel": "NIfTI",
}
"""Module to the format that reader plugins read with it."""


def check_plugins() -> list[Check]:
    """Return what plugins are there, and one check for each that cannot be used."""
    try:
        plugins = list_plugins()
    except DaptkitError as fault:
        return [error("plugins", str(fault).rstrip("."), "correct that, then run this again")]
    return [_summary(plugins), *(_broken(p) for p in plugins if p.status in ("error", "duplicate"))]


def check_readers() -> Check:
    """Return which packages for further image formats are there; none is needed for PNG and so on.

    They are looked for and not imported: a run imports them when a file asks for it.
    """
    there = [m for m in _FORMATS if importlib.util.find_spec(m) is not None]
    absent = [f"{m} ({what})" for m, what in _FORMATS.items() if m not in there]
    parts = [f"{', '.join(there)} installed"] if there else []
    parts += [f"not installed: {', '.join(absent)}"] if absent else []
    return fine("readers", f"optional, for reader plugins: {'; '.join(parts)}")


def check_environment() -> Check:
    """Return which of daptkit's environment variables are set, and those it does not know."""
    given = sorted(name for name in os.environ if name.startswith("DAPTKIT_"))
    unknown = [name for name in given if name not in VARIABLES]
    finding = f"{', '.join(given) or 'no DAPTKIT_ variable'} set"
    if unknown:
        hints = "".join(did_you_mean(name, VARIABLES) for name in unknown)
        return warning(
            "environment",
            f"{finding}; {', '.join(unknown)} means nothing to daptkit",
            hints.strip() or f"unset {' '.join(unknown)}",
        )
    return fine("environment", finding)


def _summary(plugins: Sequence[PluginStatus]) -> Check:
    good = [p for p in plugins if p.status == "ok"]
    kinds = dict.fromkeys(p.kind for p in good)
    parts = [f"{kind}s {', '.join(p.name for p in good if p.kind == kind)}" for kind in kinds]
    if off := [p.name for p in plugins if p.status == "disabled"]:
        parts.append(f"switched off {', '.join(off)}")
    if "method" not in kinds:
        parts.insert(0, "no method, so only -m none")
        return warning("plugins", "; ".join(parts), "pip install daptkit-dann, or another method")
    return fine("plugins", "; ".join(parts))


def _broken(plugin: PluginStatus) -> Check:
    package = plugin.package
    if plugin.status == "duplicate":
        cure = f"pip uninstall {package}"  # the reason names the other way
    else:
        cure = f"upgrade or uninstall {package}, or set DAPTKIT_DISABLE={package}"
    origin = f"{package} {plugin.version}"
    return warning(f"{plugin.kind} {plugin.name}", f"{origin}: {plugin.reason}", cure)
