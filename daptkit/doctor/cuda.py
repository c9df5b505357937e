"""What torch can do with this machine's GPUs; runs in the doctor's child process."""

from __future__ import annotations

from typing import Any

from daptkit.host.isolation import describe


def look() -> dict[str, Any]:
    """Return what torch was built for, whether it can use a GPU, why not, and each GPU.

    Returns:
        ``built`` (CUDA or ROCm version, or ``None``), ``available``, ``reason``, and ``gpus``:
        ``name``, ``free`` and ``total`` bytes, and ``reason`` where a small product fails on it.
    """
    import torch

    available = torch.cuda.is_available()
    return {
        "built": torch.version.cuda or getattr(torch.version, "hip", None),
        "available": available,
        "reason": "" if available else _reason(),
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())] if available else [],
    }


def _reason() -> str:
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # torch raises either, by the kind of its build
        return describe(error).partition(": ")[2]
    return "torch finds no device"


def _gpu(number: int) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"name": "", "free": 0, "total": 0, "reason": ""}
    try:
        found["name"] = torch.cuda.get_device_name(number)
        found["free"], found["total"] = torch.cuda.mem_get_info(number)
        x = torch.ones(8, 8, device=f"cuda:{number}")
        float((x @ x).sum())
    except RuntimeError as error:  # such as a card for which this build has no kernels
        found["reason"] = describe(error)
    return found
