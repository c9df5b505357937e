"""What methods do at prediction: calling them, storing them and bringing them back."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from daptkit.data.image import Log
from daptkit.errors import DataError, PluginError, UsageError
from daptkit.host import LoadedMethod, load_methods
from daptkit.host.discovery import discover
from daptkit.method import Method
from daptkit.model.alignments import CALLED_ROLES, StoredAlignment
from daptkit.plugin import build_options
from daptkit.train.guard import plugin_guard
from daptkit.train.hiding import plain_options


@dataclass(frozen=True, kw_only=True)
class Aligner:
    """A method that is called at prediction.

    Args:
        name: of the method.
        package: ``"package version"``, for messages.
        method: the method, with its state.
    """

    name: str
    package: str
    method: Method

    def fault(self, what: str) -> PluginError:
        """Return an error that names the method."""
        return PluginError(f"method '{self.name}' ({self.package}): {what}.")


@dataclass(frozen=True, kw_only=True)
class Alignments:
    """What is done at prediction, by role; nothing where a role has no owner.

    Args:
        owners: role, ``inputs`` or ``features``, to the method that is called.
        norm: module path to (mean, variance) of a normalisation layer at the target.
    """

    owners: Mapping[str, Aligner] = field(default_factory=dict)
    norm: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def changes_images(self) -> bool:
        """Whether a method owns ``inputs``."""
        return "inputs" in self.owners

    def to(self, device: torch.device) -> Alignments:
        """Move the methods to a device."""
        for owner in self.owners.values():
            owner.method.to(device)
        return self

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        """Return images (N, C, H, W) of a domain as the model is to see them, in [0, 1].

        Args:
            images: float32 in [0, 1], on the device of the methods.
            domain: ``"source"`` or ``"target"``.

        Raises:
            PluginError: the owner raises, or returns something else than finite images.
        """
        return self._called("inputs", images, domain).clamp(0.0, 1.0)

    def align_features(self, features: Tensor, domain: str) -> Tensor:
        """Return trunk features (N, D') of a domain as bottleneck and head are to see them.

        Args:
            features: float32, on the device of the methods.
            domain: ``"source"`` or ``"target"``.

        Raises:
            PluginError: the owner raises, or returns something else than finite features.
        """
        return self._called("features", features, domain)

    @torch.no_grad()
    def _called(self, role: str, values: Tensor, domain: str) -> Tensor:
        owner = self.owners.get(role)
        if owner is None:
            return values
        hook = {"inputs": "align_images", "features": "align_features"}[role]
        # Under the guard with what comes of a device later, such as its lack of memory.
        with plugin_guard(owner.name, owner.package, f"{hook}()"):
            # What is given stays as it is, whatever the method does in place.
            found: Any = getattr(owner.method.eval(), hook)(values.clone(), domain)
            finite = isinstance(found, Tensor) and bool(torch.isfinite(found).all())
        if not isinstance(found, Tensor):
            raise owner.fault(f"{hook}() returned {type(found).__name__}, not a tensor")
        if found.shape != values.shape:
            raise owner.fault(
                f"{hook}() returned shape {tuple(found.shape)} for {tuple(values.shape)}"
            )
        if not finite:
            raise owner.fault(f"{hook}() returned a value that is not finite")
        return found.to(values)


def stored_alignment(
    loaded: LoadedMethod,
    method: Method,
    options: Any,
    roles: frozenset[str],
    norm: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> StoredAlignment:
    """Return what a model folder holds of a method, a copy of its state as it is now.

    Args:
        loaded: its specification and package.
        method: the method.
        options: instance of its options dataclass; those that name a file are left out.
        roles: roles that it plays at prediction.
        norm: what it says of normalisation layers at the target.
    """
    return StoredAlignment(
        method=loaded.spec.name,
        package=loaded.package,
        version=loaded.version,
        roles=roles,
        options=plain_options(dataclasses.asdict(options)),
        task=method.task,
        state={name: t.detach().cpu().clone() for name, t in method.state_dict().items()},
        norm=dict(norm or {}),
    )


def load_alignments(stored: Sequence[StoredAlignment], log: Log) -> Alignments:
    """Bring back what a model folder holds, ready to be called on the CPU.

    Args:
        stored: of the model folder.
        log: told where a package is of another major version than the model's.

    Raises:
        PluginError: a method is not installed, or broken.
        DataError: options or state do not fit the installed version of a method.
    """
    owners: dict[str, Aligner] = {}
    norm: dict[str, tuple[Tensor, Tensor]] = {}
    for one in stored:
        norm |= one.norm
        if one.called:
            made = _load(one, log)
            owners |= dict.fromkeys(one.roles & CALLED_ROLES, made)
    return Alignments(owners=owners, norm=norm)


def _load(one: StoredAlignment, log: Log) -> Aligner:
    trained = f"{one.package} {one.version}"
    if discover().find("method", one.method) is None:
        raise PluginError(
            f"the model needs method '{one.method}' of {trained} at prediction, which is not"
            f" installed or switched off. Install it: pip install {one.package}"
        )
    loaded = load_methods([one.method], log=log)[0]
    here = f"{loaded.package} {loaded.version}"
    if loaded.package != one.package or _major(loaded.version) != _major(one.version):
        log(
            f"warning: the model was trained with method '{one.method}' of {trained}; here is"
            f" {here}."
        )
    return Aligner(name=one.method, package=here, method=make_method(loaded, one, trained))


def tell_unused(stored: Sequence[StoredAlignment], owned: Collection[str], log: Log) -> None:
    """Tell of what a model did at prediction that a run which starts from it does not do.

    Args:
        stored: of the model of ``--init-from``.
        owned: roles that the run's own methods have.
        log: told one line for each method.
    """
    for one in stored:
        if not one.roles <= set(owned):
            log(
                f"warning: method '{one.method}' aligned the target of the model of --init-from;"
                " here nothing does. Name it in -m to fit it to this target."
            )


def make_method(loaded: LoadedMethod, one: StoredAlignment, trained: str) -> Method:
    """Make a method anew and give it the stored state.

    Args:
        loaded: the installed method.
        one: what is stored of it.
        trained: package and version that it was stored by, for messages.

    Raises:
        DataError: options or state do not fit the installed version.
        PluginError: its constructor raises.
    """
    misfit = f"the model's method '{one.method}' of {trained} does not fit the installed"
    misfit += f" {loaded.package} {loaded.version}"
    try:
        options: Any = build_options(loaded.spec.options, one.options, f"{one.method}.")
    except UsageError as error:
        raise DataError(f"{misfit}: {error}") from error
    # Random weights are overwritten at once, so they must not cost the caller's seed a draw.
    with torch.random.fork_rng(devices=[]):
        method = loaded.create(options, one.task)
    _fill(method, one.state, misfit)
    return method.eval()


def _fill(method: Method, state: Mapping[str, Tensor], misfit: str) -> None:
    try:
        method.load_state_dict(dict(state))
    except RuntimeError as error:
        raise DataError(f"{misfit}: {str(error).splitlines()[-1].strip()}") from error


def _major(version: str) -> tuple[int, ...]:
    """Return the part of a version within which a plugin keeps its promises."""
    try:
        release = Version(version).release
    except InvalidVersion:
        return ()
    return release[:1] if release[0] else release[:2]
