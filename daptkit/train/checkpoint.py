"""Checkpoints: the last state and the one before it, each complete or absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daptkit.errors import DaptkitError
from daptkit.run import atomic_file, temporary_prefix, writing
from daptkit.train.statefile import pack_state, read_state, write_packed

_LAST, _PREVIOUS = "last.ckpt", "previous.ckpt"
_BACKBONE = "net.backbone."


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write ``last.ckpt`` atomically after keeping the one before as ``previous.ckpt``.

    See :mod:`daptkit.train.statefile` for what is in the file: a bit flip or a truncation is found
    before anything is unpickled.

    Raises:
        DaptkitError: the disk is full or the folder cannot be written.
    """
    parts = pack_state(state)
    last = folder / _LAST
    with writing(last):
        for unfinished in folder.glob(f"{temporary_prefix(last)}*"):
            unfinished.unlink()
        if last.exists():
            last.replace(folder / _PREVIOUS)
    with atomic_file(last) as file:
        write_packed(file, parts)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write one state atomically, in the format of :func:`save_checkpoint`.

    Raises:
        DaptkitError: the disk is full or the folder cannot be written.
    """
    parts = pack_state(state)
    with atomic_file(path) as file:
        write_packed(file, parts)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Return the newest usable state and the names of files that were not usable, now removed.

    Raises:
        DaptkitError: checkpoints exist but none can be read (these stay), the newest whole one is
            of another format, or a damaged one cannot be removed.
    """
    damaged: list[str] = []
    for name in (_LAST, _PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        state = read_checkpoint(path)
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


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state in a file, or ``None`` if it is damaged.

    Raises:
        DaptkitError: it cannot be read, or is whole and of another format.
    """
    try:
        return read_state(path)
    except OSError as error:
        raise DaptkitError(f"cannot read '{path}': {error.strerror or error}.") from error


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
        load_module(module, state["module"], frozen)
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise _misfit(str(error).splitlines()[-1].strip()) from error


def load_module(module: nn.Module, state: dict[str, Tensor], frozen: bool) -> None:
    """Load what :func:`module_state` returned.

    Raises:
        DaptkitError: names or shapes do not match.
    """
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise _misfit(str(error).splitlines()[-1].strip()) from error
    wrong = [name for name in missing if not (frozen and name.startswith(_BACKBONE))]
    if wrong + list(unexpected):
        raise _misfit(", ".join([*wrong, *unexpected][:3]))


def _misfit(what: str) -> DaptkitError:
    return DaptkitError(
        f"the checkpoint does not fit the run ({what}); was a plugin updated in between?"
        " Start again in a new --out."
    )
