"""NVIDIA driver and GPUs, as the driver's own tool and torch see them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from daptkit.doctor.attempts import Attempt
from daptkit.doctor.check import Check, error, fine, warning
from daptkit.doctor.machine import readable

LOOK = "daptkit.doctor.cuda:look"
"""What the child process calls after importing torch."""

_QUERY = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
_QUERY_LIMIT = 20.0
_HIDE = "CUDA_VISIBLE_DEVICES"
_LEAST_FREE = 2 * 2**30  # a small network and its batch
_ON_CPU = "runs use the CPU"


def find_driver() -> str:
    """Return the version of the NVIDIA driver, ``"unknown"`` where it does not say, or ``""``."""
    if shutil.which(_QUERY[0]):
        try:
            done = subprocess.run(
                _QUERY, capture_output=True, text=True, timeout=_QUERY_LIMIT, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        lines = done.stdout.split()
        return lines[0] if done.returncode == 0 and lines else "unknown"
    return "unknown" if Path("/proc/driver/nvidia/version").exists() else ""


def check_gpus(driver: str, attempt: Attempt, reinstall: str) -> list[Check]:
    """Return what torch can do with the GPUs, and each of them.

    Args:
        driver: as :func:`find_driver` returns it.
        attempt: how :func:`daptkit.doctor.cuda.look` went.
        reinstall: line that installs torch anew.
    """
    if not attempt.tried:
        return [warning("cuda", "not known without torch", "first repair torch")]
    if attempt.reason:
        return [
            error(
                "cuda",
                f"asking torch for GPUs failed: {attempt.reason}",
                f"set {_HIDE}= (empty) to run on the CPU; {reinstall}",
            )
        ]
    details = attempt.details
    if details["available"]:
        shown = f"torch uses CUDA {details['built']}" + (f", driver {driver}" if driver else "")
        return [
            fine("cuda", shown),
            *(_check_gpu(n, g, reinstall) for n, g in enumerate(details["gpus"])),
        ]
    return [_without(driver, details["built"], details["reason"], reinstall)]


def _without(driver: str, built: str | None, reason: str, reinstall: str) -> Check:
    """Say why torch uses no GPU."""
    if not driver:
        return fine("cuda", f"no NVIDIA driver; {_ON_CPU}")
    if not built:
        return warning(
            "cuda",
            f"driver {driver} is there, but this torch was built for CPUs; {_ON_CPU}",
            reinstall,
        )
    hidden = os.environ.get(_HIDE)
    if hidden is not None and hidden in ("", "-1"):
        return warning("cuda", f"{_HIDE}={hidden} hides the GPUs; {_ON_CPU}", f"unset {_HIDE}")
    return warning(
        "cuda",
        f"torch (CUDA {built}) cannot use the GPU with driver {driver}: {reason}; {_ON_CPU}",
        "update the driver, or install a torch built for an older CUDA; "
        "nvidia-smi shows the newest CUDA that the driver knows",
    )


def _check_gpu(number: int, gpu: dict[str, object], reinstall: str) -> Check:
    name, label = f"gpu {number}", str(gpu["name"])
    if gpu["reason"]:
        return error(
            name,
            f"{label}: a test product failed: {gpu['reason']}".lstrip(": "),
            f"--device cpu works meanwhile; {reinstall}",
        )
    free, total = int(str(gpu["free"])), int(str(gpu["total"]))
    finding = f"{label}, {readable(free)} of {readable(total)} free"
    if free < _LEAST_FREE:
        return warning(name, finding, "end what else uses it (nvidia-smi), or use another --device")
    return fine(name, finding)
