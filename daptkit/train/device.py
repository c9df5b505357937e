"""Device, precision and seeds of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from daptkit.errors import UsageError

_SEED_SPACE = 2**63 - 25


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device '{name}' is not one of auto, cpu, cuda, cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device '{name}' is not one of auto, cpu, cuda, cuda:N.")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise UsageError(f"--device '{name}': {count} CUDA devices are visible; try cpu.")
    return device


def derive_seed(seed: int, *numbers: int) -> int:
    """Mix a seed with counters into one 63-bit seed, so that streams do not overlap by addition."""
    mixed = seed + 1
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number * 1442695040888963407 + 1) % _SEED_SPACE
    return mixed


def seed_default_generators(device: torch.device, seed: int) -> None:
    """Seed what dropout and the like draw from, on the CPU and on a device.

    ``torch.manual_seed`` gives the same numbers, but formats the call stack for each backend that
    is not in use, which costs a small network a twentieth of its step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def read_numbers(scalars: Sequence[Tensor]) -> list[float]:
    """Return scalars of one type as Python numbers, in one read of each device that holds some."""
    places: dict[torch.device, list[int]] = {}
    for place, value in enumerate(scalars):
        places.setdefault(value.device, []).append(place)
    numbers = [0.0] * len(scalars)
    for held in places.values():
        read = torch.stack([scalars[place] for place in held]).tolist()
        for place, number in zip(held, read, strict=True):
            numbers[place] = number
    return numbers


class Precision:
    """Mixed precision of the step: autocast, and loss scaling where float16 needs it.

    Args:
        device: where the step runs.
        enabled: whether precision is mixed at all.
        dtype: ``bfloat16`` or ``float16``.

    Raises:
        UsageError: float16 on a CPU.
    """

    def __init__(self, device: torch.device, *, enabled: bool, dtype: str) -> None:
        self.device = device
        self.enabled = enabled
        self.dtype = torch.float16 if dtype == "float16" else torch.bfloat16
        if enabled and device.type == "cpu" and self.dtype == torch.float16:
            raise UsageError("--amp-dtype float16 needs a GPU; use bfloat16 on a CPU.")

    @property
    def reads_stall(self) -> bool:
        """Whether a number read from the device waits for all the work in flight there.

        Where it does, a step reads nothing: what has to be checked is noted on the device.
        """
        return self.device.type != "cpu"

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run a block in the chosen precision."""
        if not self.enabled and not torch.is_autocast_enabled(self.device.type):
            yield
            return
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.enabled):
            yield

    def new_scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler in its initial state; it does nothing but for float16."""
        scale = self.enabled and self.dtype == torch.float16
        return torch.amp.GradScaler(self.device.type, enabled=scale)


def full_precision(device: torch.device) -> Precision:
    """Return single precision: what is delivered must be what ``daptkit predict`` computes."""
    return Precision(device, enabled=False, dtype="bfloat16")
