"""Checkpoints: the last state and the one before it, each complete or absent."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daptkit.errors import DaptkitError
from daptkit.run import atomic_write, temporary_prefix, writing

_MAGIC = b"daptkit-checkpoint-1\n"
_LAST, _PREVIOUS = "last.ckpt", "previous.ckpt"
_BACKBONE = "net.backbone."


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``last.ckpt`` atomically after keeping the one before as ``previous.ckpt``.

    The file is a magic line, the SHA-256 of the rest in hex and a newline, then the state as
    ``torch.save`` writes it: a bit flip or a truncation is found before anything is unpickled.

    Raises:
        DaptkitError: the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode() + b"\n"
    last = folder / _LAST
    with writing(last):
        for unfinished in folder.glob(f"{temporary_prefix(last)}*"):
            unfinished.unlink()
        if last.exists():
            last.replace(folder / _PREVIOUS)
    atomic_write(last, _MAGIC + digest + content)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return the newest usable state and the names of files that were not usable, now removed.

    Raises:
        DaptkitError: checkpoints exist but none can be read (these stay), or a damaged one cannot
            be removed.
    """
    damaged: list[str] = []
    for name in (_LAST, _PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        state = _read(path)
        if state is not None:
            _remove(folder, damaged)
            return state, tuple(damaged)
        damaged.append(name)
    if damaged:
        raise DaptkitError(
            f"no checkpoint of the run can be read ({', '.join(damaged)} damaged);"
            " start again in a new --out."
        )
    return None, ()


def _remove(folder: Path, damaged: Sequence[str]) -> None:
    """Remove damaged files, since the next save would put them in the place of the good one."""
    for name in damaged:
        with writing(folder / name):
            (folder / name).unlink()


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DaptkitError(f"cannot read '{path}': {error.strerror or error}.") from error
    head, body = content[: len(_MAGIC) + 65], content[len(_MAGIC) + 65 :]
    if head != _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n":
        return None
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return None
    return state


def module_state(module: nn.Module, frozen: bool) -> dict[str, Tensor]:
    """Return the state of a step's module; a frozen backbone never changes and is left out."""
    return {
        name: value
        for name, value in module.state_dict().items()
        if not (frozen and name.startswith(_BACKBONE))
    }


def load_states(
    module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], frozen: bool
) -> None:
    """Load what a checkpoint holds of a step's module and its optimiser.

    Raises:
        DaptkitError: names or shapes do not match, as after a change of a plugin's version.
    """
    try:
        missing, unexpected = module.load_state_dict(state["module"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise _misfit(str(error).splitlines()[-1].strip()) from error
    wrong = [name for name in missing if not (frozen and name.startswith(_BACKBONE))]
    if wrong + list(unexpected):
        raise _misfit(", ".join([*wrong, *unexpected][:3]))


def _misfit(what: str) -> DaptkitError:
    return DaptkitError(
        f"the checkpoint does not fit the run ({what}); was a plugin updated in between?"
        " Start again in a new --out."
    )
