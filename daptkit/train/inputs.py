"""Role ``inputs``: a run's images as its method changes them, beside the images as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from daptkit.data import AlignedImages, Augment, ImageSet, to_float
from daptkit.data.image import Log
from daptkit.errors import PluginError
from daptkit.host import LoadedMethod
from daptkit.model import AdaptNet
from daptkit.model.alignments import StoredAlignment
from daptkit.plugin import build_options
from daptkit.train.alignments import (
    Aligner,
    Alignments,
    load_alignments,
    make_method,
    stored_alignment,
    tell_unused,
)
from daptkit.train.device import derive_seed
from daptkit.train.domains import Domain, TaskData
from daptkit.train.guard import plugin_guard
from daptkit.train.inference import SplitPasses
from daptkit.train.jobs import JobMaker
from daptkit.train.trunk import with_trunk

FITTED_ON = 256
"""Images of a domain that an alignment is fitted on at most."""

_ROLE = frozenset({"inputs"})
_SPLITS = {"source": "source_train", "target": "target"}
_STREAM = 6
"""Tells the seeds of samples from the others that are derived from the run's seed."""
_CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class FittedAlignment:
    """A method that changes the images of a run, fitted.

    Args:
        stored: what a model folder holds of it.
        alignments: the method, on the run's device.
        change: domain to the mean absolute change of a value in [0, 1], over the images that it
            is fitted on.
    """

    stored: StoredAlignment
    alignments: Alignments
    change: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return what ``run.json`` holds; what the method reports is beside the others' reports."""
        return {
            "method": self.stored.method,
            "package": self.stored.package,
            "version": self.stored.version,
            "mean_change": dict(self.change),
        }


def fit_inputs(maker: JobMaker) -> FittedAlignment | None:
    """Fit the method that owns ``inputs``, before anything is trained.

    One process fits, and all of them get its state. What is then used is a method made anew from
    that state, as it will be at prediction.

    Args:
        maker: of the run, with its methods.

    Returns:
        ``None`` where no method owns the role.

    Raises:
        PluginError: the method raises or breaks the contract.
    """
    owned = {role for method in maker.methods for role in method.spec.roles}
    tell_unused(maker.prepared.network.alignments, owned, maker.reporter.line)
    owner = next((m for m in maker.methods if "inputs" in m.spec.roles), None)
    if owner is None:
        return None
    stored = maker.world.first(lambda: _fit(maker, owner))
    origin = f"{owner.package} {owner.version}"
    method = make_method(owner, stored, origin)
    return _measured(
        maker, stored, {"inputs": Aligner(name=owner.spec.name, package=origin, method=method)}
    )


def restored_inputs(
    maker: JobMaker, stored: Sequence[StoredAlignment], log: Log
) -> FittedAlignment | None:
    """Bring back the method that changed the images of a finished run.

    Args:
        maker: of the run.
        stored: what its model folder holds.
        log: told where a package is of another major version.

    Raises:
        PluginError: the method is not installed, or broken.
        DataError: it does not fit the installed version.
    """
    found = [one for one in stored if "inputs" in one.roles]
    if not found:
        return None
    return _measured(maker, found[0], load_alignments(found, log).owners)


def aligned(maker: JobMaker, fitted: FittedAlignment) -> JobMaker:
    """Return what makes jobs that see the images of a run as its method changes them.

    The source is left alone where the method leaves the images that it was fitted on as they are.
    The trunk's features of what is changed are computed, or read from the cache.
    """
    prepared, config = maker.prepared, maker.config
    data = prepared.data
    domains: dict[str, Any] = {
        name: _changed(domain, fitted, name, maker)
        for name, domain in (("source", data.source), ("target", data.target))
        if fitted.change[name]
    }
    data = replace(data, **domains)
    if config.finetune == "frozen" and domains:
        # Augmented views of the images as they are were made with this, too.
        augment = Augment(prepared.augmentation) if config.trunk_views else None
        data, _ = with_trunk(
            replace(data, augment=augment),
            prepared.network.make(maker.precision.device),
            prepared.conversion,
            prepared.fingerprints,
            maker.precision.device,
            maker.reporter,
            config,
            maker.world,
        )
    name, state = fitted.stored.method, fitted.stored.state
    # The fit may be the same and the method another: then it changes the images otherwise.
    change = {f"change of {domain}": torch.tensor(x) for domain, x in fitted.change.items()}
    return replace(
        maker,
        prepared=replace(prepared, data=data),
        states={name: state},
        fitted={name: {**state, **change}},
    )


def methods_view(
    maker: JobMaker, twin: SplitPasses, net: AdaptNet, fitted: FittedAlignment | None
) -> tuple[JobMaker, SplitPasses]:
    """Return what makes the job of the methods, and what they may ask of the source-only model.

    Both see the same images. The source-only model itself was trained on, and is judged by, the
    images as they are.

    Args:
        maker: of the run.
        twin: passes of the source-only model.
        net: the source-only model.
        fitted: what changes the images, if anything does.
    """
    if fitted is None:
        return maker, twin
    maker = aligned(maker, fitted)
    data, precision = maker.prepared.data, maker.precision
    return maker, SplitPasses(net, data, precision, delivered=True, world=maker.world)


def align(
    domain: Domain,
    alignments: Alignments,
    name: str,
    device: torch.device,
    *,
    fingerprint: str = "",
    keep: bool = False,
) -> Domain:
    """Return a domain with its images changed, and without features of those as they are.

    Args:
        domain: images as they are.
        alignments: what changes them; it is moved to ``device``.
        name: ``"source"`` or ``"target"``.
        device: where they are changed.
        fingerprint: hash of the alignment, for what is cached of the images.
        keep: whether the changed images are kept in memory where they fit.
    """
    assert isinstance(domain.images, ImageSet)

    alignments.to(device)

    def changed(images: Tensor) -> Tensor:
        return alignments.align_images(images.to(device), name).cpu()

    images = AlignedImages(domain.images, changed, fingerprint=fingerprint, keep=keep)
    return replace(domain, images=images, trunk=None, views=None)


def sample(data: TaskData, name: str, seed: int) -> Tensor:
    """Return the images of a domain that an alignment is fitted on, (n, C, H, W) in [0, 1].

    Args:
        data: both domains, their images as they are.
        name: ``"source"`` or ``"target"``.
        seed: of the run.
    """
    domain, rows = data.split(_SPLITS[name])
    rng = np.random.default_rng(derive_seed(seed, list(_SPLITS).index(name), _STREAM))
    chosen = rng.choice(rows, min(FITTED_ON, len(rows)), replace=False)
    return to_float(domain.images.batch(np.sort(chosen)))


def _fit(maker: JobMaker, owner: LoadedMethod) -> StoredAlignment:
    name, config = owner.spec.name, maker.config
    data = maker.prepared.data
    values = config.method_options.get(name, {})
    options: Any = build_options(owner.spec.options, values, f"{name}.")
    # The same draws whatever came before, and none that what follows would miss.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, 1))
        method = owner.create(options, data.task)
        before = {key: value.shape for key, value in method.state_dict().items()}
        maker.reporter.line(f"{name}: fitted on images of both domains")
        with (
            plugin_guard(name, f"{owner.package} {owner.version}", "fit_images()"),
            torch.no_grad(),
        ):
            method.fit_images(
                sample(data, "source", config.seed), sample(data, "target", config.seed)
            )
    after = {key: value.shape for key, value in method.state_dict().items()}
    if before != after:
        wrong = sorted(k for k in {**before, **after} if before.get(k) != after.get(k))
        raise PluginError(
            f"method '{name}' ({owner.package} {owner.version}): fit_images() changed the shape of"
            f" '{wrong[0]}'; a buffer has its final shape from the start."
        )
    return stored_alignment(owner, method, options, _ROLE)


def _measured(
    maker: JobMaker, stored: StoredAlignment, owners: Mapping[str, Aligner]
) -> FittedAlignment:
    """Move a method to the run's device, and see how much it changes either domain."""
    alignments = Alignments(owners=owners).to(maker.precision.device)
    data, device = maker.prepared.data, maker.precision.device
    change = {}
    for name in _SPLITS:
        images = sample(data, name, maker.config.seed)
        moved = [
            alignments.align_images(part.to(device), name).cpu() - part
            for part in torch.split(images, _CHUNK)
        ]
        change[name] = float(torch.cat(moved).abs().double().mean())
    return FittedAlignment(stored=stored, alignments=alignments, change=change)


def _changed(domain: Domain, fitted: FittedAlignment, name: str, maker: JobMaker) -> Domain:
    return align(
        domain,
        fitted.alignments,
        name,
        maker.precision.device,
        fingerprint=fitted.stored.fingerprint(),
        keep=maker.config.finetune != "frozen",
    )
