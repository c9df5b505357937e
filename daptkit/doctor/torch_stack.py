"""torch, torchvision and timm: installed, importable and fit for each other."""

from __future__ import annotations

import re
from collections.abc import Mapping

from daptkit.doctor.attempts import Attempt
from daptkit.doctor.check import Check, error, warning
from daptkit.doctor.packages import check_package, install, installed_version

TORCH, TORCHVISION, TIMM = "torch", "torchvision", "timm"
STACK = (TORCH, TORCHVISION, TIMM)
NEEDS = {TORCHVISION: (TORCH,), TIMM: (TORCH, TORCHVISION)}
"""What each one imports: where that fails it is not tried."""

_MINOR_GAP = 15  # torch 2.x was released together with torchvision 0.(x + 15)


def check_stack(required: Mapping[str, str], attempts: Mapping[str, Attempt]) -> list[Check]:
    """Return one check for each of torch, torchvision and timm."""
    torch_version = attempts[TORCH].version or installed_version(TORCH)
    checks = []
    for name in STACK:
        requirement, attempt = required.get(name, name), attempts[name]
        if not attempt.tried:
            broken = next(n for n in NEEDS[name] if not attempts[n].well)
            version = installed_version(name)
            checks.append(
                error(name, f"{version} needs {broken}".lstrip(), f"first repair {broken}")
            )
        elif name == TORCHVISION and not attempt.absent:
            checks.append(_check_torchvision(torch_version, requirement, attempt))
        else:
            checks.append(check_package(name, requirement, attempt))
    return checks


def matching_torchvision(torch_version: str) -> str:
    """Return the series of torchvision that goes with a torch: ``"2.14.1"`` gives ``"0.29"``.

    Empty where that is not known.
    """
    found = re.match(r"2\.(\d+)", torch_version)
    return f"0.{int(found[1]) + _MINOR_GAP}" if found else ""


def pair(torch_version: str) -> str:
    """Return the line that installs torch and the torchvision that goes with it."""
    series = ".".join(torch_version.split(".")[:2])
    return (
        f'pip install --upgrade --force-reinstall "torch=={series}.*" '
        f'"torchvision=={matching_torchvision(torch_version)}.*"'
    )


def _check_torchvision(torch_version: str, requirement: str, attempt: Attempt) -> Check:
    version = attempt.version or installed_version(TORCHVISION)
    wanted = matching_torchvision(torch_version)
    other_series = bool(wanted and version) and not _of_series(version, wanted)
    other_build = not other_series and _build(version) != _build(torch_version)
    if attempt.well and not other_series:
        return check_package(TORCHVISION, requirement, attempt)
    if not wanted or not (other_series or "torchvision::" in attempt.reason):
        return check_package(TORCHVISION, requirement, attempt)
    finding = f"{version or 'this torchvision'} does not fit torch {torch_version}"
    if other_series:
        finding += f", which goes with torchvision {wanted}"
    elif other_build:
        finding += ": they were built for different devices"
    if attempt.reason:
        finding += f" ({attempt.reason})"
    blame = warning if attempt.well else error
    return blame(TORCHVISION, finding, pair(torch_version))


def _of_series(version: str, series: str) -> bool:
    return version == series or version.startswith(f"{series}.")


def _build(version: str) -> str:
    """Return the local part: ``"2.14.1+cu128"`` gives ``"cu128"``."""
    return version.partition("+")[2]


def reinstall(required: Mapping[str, str], torch_version: str) -> str:
    """Return the line that installs torch anew, with its torchvision where that is known."""
    if matching_torchvision(torch_version):
        return pair(torch_version)
    return install(required.get(TORCH, TORCH), "--force-reinstall")
