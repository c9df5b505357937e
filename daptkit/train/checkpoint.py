"""Checkpoints: the last state and the one before it, each complete or absent."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daptkit.errors import DaptkitError
from daptkit.run import atomic_write

_MAGIC = b"daptkit-checkpoint-1\n"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``last.ckpt`` atomically after keeping the one before as ``previous.ckpt``.

    The file is a magic line, the SHA-256 of the rest in hex and a newline, then the state as
    ``torch.save`` writes it: a bit flip or a truncation is found before anything is unpickled.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode() + b"\n"
    last = folder / "last.ckpt"
    if last.exists():
        last.replace(folder / "previous.ckpt")
    atomic_write(last, _MAGIC + digest + content)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return the newest usable state and the names of files that were not usable.

    Raises:
        DaptkitError: checkpoints exist but none can be read.
    """
    damaged: list[str] = []
    for name in ("last.ckpt", "previous.ckpt"):
        path = folder / name
        if not path.exists():
            continue
        state = _read(path)
        if state is not None:
            return state, tuple(damaged)
        damaged.append(name)
    if damaged:
        raise DaptkitError(
            f"no checkpoint of the run can be read ({', '.join(damaged)} damaged);"
            " start again in a new --out."
        )
    return None, ()


def _read(path: Path) -> dict[str, Any] | None:
    content = path.read_bytes()
    head, body = content[: len(_MAGIC) + 65], content[len(_MAGIC) + 65 :]
    if head != _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n":
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return None
    return state


_BACKBONE = "net.backbone."


def module_state(module: nn.Module, frozen: bool) -> dict[str, Tensor]:
    """Return the state of a step's module; a frozen backbone never changes and is left out."""
    return {
        name: value
        for name, value in module.state_dict().items()
        if not (frozen and name.startswith(_BACKBONE))
    }


def load_module_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what :func:`module_state` returned.

    Raises:
        DaptkitError: names do not match, as after a change of a plugin's version.
    """
    missing, unexpected = module.load_state_dict(state, strict=False)
    wrong = [name for name in missing if not name.startswith(_BACKBONE)] + list(unexpected)
    if wrong:
        raise DaptkitError(
            f"the checkpoint does not fit the run ({', '.join(wrong[:3])});"
            " was a plugin updated in between? Start again in a new --out."
        )
