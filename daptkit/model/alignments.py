"""What methods do to images, features or normalisation at prediction, in a model folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from daptkit.errors import DataError
from daptkit.method import TaskInfo

ALIGNMENTS_FILE = "alignments.safetensors"
CALLED_ROLES = frozenset({"inputs", "features"})
"""Roles whose owner is called at prediction, so that its package has to be installed there."""

_STATE, _MEAN, _VARIANCE = "state", "mean", "variance"


@dataclass(frozen=True, kw_only=True)
class StoredAlignment:
    """What one method does at prediction.

    Args:
        method: name of the method.
        package: distribution that offers it.
        version: of the distribution that it was trained with.
        roles: which of ``inputs``, ``features`` and ``norm`` it owns.
        options: plain values of its options, without those that name a file.
        task: what the method was made for.
        state: the method's parameters and buffers.
        norm: module path to (mean, variance) of a normalisation layer at the target.
    """

    method: str
    package: str
    version: str
    roles: frozenset[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    task: TaskInfo
    state: Mapping[str, Tensor] = field(default_factory=dict)
    norm: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def called(self) -> bool:
        """Whether the method itself is needed at prediction, and not its tensors alone."""
        return not self.roles.isdisjoint(CALLED_ROLES)

    def fingerprint(self) -> str:
        """Return the sha256 of everything that what it does depends on."""
        return hashlib.sha256(repr(self._identity()).encode()).hexdigest()

    def _identity(self) -> tuple[Any, ...]:
        digests = [
            (name, hashlib.sha256(save({"": tensor})).hexdigest())
            for name, tensor in sorted(_tensors(self).items())
        ]
        return (
            self.method,
            self.package,
            self.version,
            sorted(self.roles),
            sorted(self.options.items()),
            _task_json(self.task),
            digests,
        )


def required_packages(alignments: Sequence[StoredAlignment]) -> list[str]:
    """Return the packages without which a model with these alignments cannot predict."""
    return sorted({one.package for one in alignments if one.called})


def pack_alignments(alignments: Sequence[StoredAlignment]) -> tuple[bytes, dict[str, Any]]:
    """Return the content of :data:`ALIGNMENTS_FILE` and its entry of ``model.json``."""
    content = save(
        {
            f"{number}/{name}": tensor
            for number, one in enumerate(alignments)
            for name, tensor in _tensors(one).items()
        }
    )
    return content, {
        "file": ALIGNMENTS_FILE,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "methods": [
            {
                "method": one.method,
                "package": one.package,
                "version": one.version,
                "roles": sorted(one.roles),
                "options": dict(one.options),
                "task": _task_json(one.task),
            }
            for one in alignments
        ],
    }


def read_alignments(
    folder: Path, entry: Mapping[str, Any], classes: tuple[str, ...]
) -> tuple[StoredAlignment, ...]:
    """Return the alignments of a model folder.

    Args:
        folder: the model folder.
        entry: what :func:`pack_alignments` returned for ``model.json``.
        classes: class names of the model.

    Raises:
        DataError: the file is missing, truncated, altered, or not what the entry says.
    """
    where = f"model folder {folder}: {ALIGNMENTS_FILE}"
    try:
        content = (folder / ALIGNMENTS_FILE).read_bytes()
    except OSError as error:
        raise DataError(f"{where} is missing or not readable. Copy the folder again.") from error
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise DataError(
            f"{where} was altered or damaged (sha256 differs, {len(content)} bytes instead of"
            f" {entry['bytes']}). Copy the folder again."
        )
    try:
        tensors = load(content)
        return tuple(
            _alignment(one, _under(tensors, str(number)), classes)
            for number, one in enumerate(entry["methods"])
        )
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{where} does not hold what model.json says.") from error


def _alignment(
    one: Mapping[str, Any], tensors: Mapping[str, Tensor], classes: tuple[str, ...]
) -> StoredAlignment:
    task = one["task"]
    means, variances = _under(tensors, _MEAN), _under(tensors, _VARIANCE)
    return StoredAlignment(
        method=one["method"],
        package=one["package"],
        version=one["version"],
        roles=frozenset(one["roles"]),
        options=one["options"],
        task=TaskInfo(
            classes=classes,
            dims=task["dims"],
            source_prior=torch.tensor(task["source_prior"]),
            n_source=task["n_source"],
            n_target=task["n_target"],
        ),
        state=_under(tensors, _STATE),
        norm={path: (mean, variances[path]) for path, mean in means.items()},
    )


def _tensors(one: StoredAlignment) -> dict[str, Tensor]:
    """Return every tensor by a name that tells what it is."""
    named = {f"{_STATE}/{name}": tensor for name, tensor in one.state.items()}
    for path, (mean, variance) in one.norm.items():
        named |= {f"{_MEAN}/{path}": mean, f"{_VARIANCE}/{path}": variance}
    # A copy of each: safetensors refuses tensors that share memory.
    return {name: t.detach().cpu().contiguous().clone() for name, t in named.items()}


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix/``, without it."""
    start = f"{prefix}/"
    return {name[len(start) :]: t for name, t in tensors.items() if name.startswith(start)}


def _task_json(task: TaskInfo) -> dict[str, Any]:
    return {
        "dims": dict(task.dims),
        "source_prior": task.source_prior.tolist(),
        "n_source": task.n_source,
        "n_target": task.n_target,
    }
