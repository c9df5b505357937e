"""The packages that daptkit requires, as its own metadata lists them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping

import daptkit
from daptkit.doctor.attempts import Attempt
from daptkit.doctor.check import Check, error, fine, warning

_MODULES = {"pillow": "PIL", "scikit-learn": "sklearn", "umap-learn": "umap"}
"""Modules that are not called like their distribution."""

_WITHOUT = {"umap-learn": "the report draws a PCA instead of UMAP"}
"""What a run does without a package that it can spare."""


def module_of(package: str) -> str:
    """Return the module that a distribution is imported by."""
    return _MODULES.get(package, package.replace("-", "_"))


def requirements() -> dict[str, str]:
    """Return each required package, in lower case, with the requirement as the metadata has it.

    Raises:
        importlib.metadata.PackageNotFoundError: daptkit runs without having been installed.
        ImportError: the package that reads requirements is missing.
    """
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in importlib.metadata.requires("daptkit") or ()]
    return {
        r.name.lower(): str(r)
        for r in found
        if r.marker is None or r.marker.evaluate({"extra": ""})
    }


def check_daptkit() -> Check:
    """Return whether daptkit was installed, and as the version that it is."""
    own = daptkit.__version__
    installed = installed_version("daptkit")
    if not installed:
        return warning(
            "daptkit",
            f"{own}, not installed as a package: its requirements are not known",
            "pip install . in the root of the checkout",
        )
    if installed != own:
        return warning(
            "daptkit",
            f"{own}, installed as {installed}: the requirements may be those of {installed}",
            "pip install again, the way it was installed",
        )
    return fine("daptkit", own)


def check_packages(required: Mapping[str, str], attempts: Mapping[str, Attempt]) -> list[Check]:
    """Return a check for each required package that has something wrong, and one for the rest.

    Args:
        required: package to requirement, without those that have checks of their own.
        attempts: module to how its import went.
    """
    found = [check_package(name, required[name], attempts[module_of(name)]) for name in required]
    wrong = [check for check in found if check.cure]
    good = [check.name for check in found if not check.cure]
    return [*wrong, fine("packages", f"{', '.join(good)} fit")] if good else wrong


def check_package(name: str, requirement: str, attempt: Attempt) -> Check:
    """Return whether a package can be imported and fits the version that daptkit asks for."""
    version = attempt.version or installed_version(name)
    without = f"; {_WITHOUT[name]}" if name in _WITHOUT else ""
    blame = warning if without else error
    if attempt.absent:
        return blame(name, f"not installed{without}", install(requirement))
    if attempt.reason:
        shown = f"{version} " if version else ""
        return blame(
            name,
            f"{shown}cannot be imported: {attempt.reason}{without}",
            install(requirement, "--force-reinstall"),
        )
    if not fits(version, requirement):
        return warning(name, f"{version} is not what daptkit asks for", install(requirement))
    return fine(name, version)


def installed_version(package: str) -> str:
    """Return the version that the metadata of a package states, or an empty string."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def fits(version: str, requirement: str) -> bool:
    """Return whether a version is within a requirement's bounds; one that is not known is."""
    try:
        from packaging.requirements import Requirement
        from packaging.version import InvalidVersion
    except ImportError:  # a finding of its own
        return True
    try:
        return not version or Requirement(requirement).specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return True


def install(requirement: str, *options: str) -> str:
    """Return the line that installs a requirement."""
    return " ".join(["pip install", *options, f'"{requirement}"'])
