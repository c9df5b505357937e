"""Trunk features of a frozen run, from the cache or computed once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from daptkit.config import AdaptConfig
from daptkit.data import AlignedImages, Augment, Conversion
from daptkit.model import AdaptNet, FeatureCache, default_cache_dir
from daptkit.model.cache import Images
from daptkit.model.network import evaluating
from daptkit.train.domains import Domain, Rows, TaskData
from daptkit.train.plugins import model_package
from daptkit.train.progress import Reporter, SilentReporter
from daptkit.train.views import TrunkViews, ViewImages
from daptkit.train.world import ALONE, World

_BATCH = 64


@torch.no_grad()
def check_taps(net: AdaptNet, layers: tuple[str, ...]) -> None:
    """Refuse layers of the backbone, which a run on cached features does not have.

    Raises:
        UsageError: a layer lies in the backbone.
    """
    with evaluating(net):
        net(torch.zeros(1, net.trunk_dim, device=net.mean.device), layers, from_trunk=True)


def with_trunk(
    data: TaskData,
    net: AdaptNet,
    conversion: Conversion,
    fingerprints: dict[str, str],
    device: torch.device,
    reporter: Reporter,
    config: AdaptConfig,
    world: World = ALONE,
) -> tuple[TaskData, int]:
    """Return the data with the trunk's features of both domains, and how many were cached.

    A domain that has features already keeps them.

    With ``--trunk-views V`` there are also the features of V augmented views of each image that is
    trained on, or held out: cross-fitting trains on those too. A view costs as much as the plain
    features, once for each seed and preset. The data's own augmentation is then done.

    Args:
        data: both domains, with images.
        net: the model; its trunk is run where the cache has nothing.
        conversion: how an image file became the model's input.
        fingerprints: hash of the contents of each domain.
        device: where the trunk runs.
        reporter: where progress goes.
        config: number and seed of the views.
        world: processes that share the forwards; the first one reads and writes the cache.

    Raises:
        DaptkitError: the cache cannot be written.
    """
    cache = FeatureCache(default_cache_dir() / "features")
    readers = {
        name: _Reading(
            cache=cache,
            net=net,
            domain=domain,
            key_parts={
                "data": fingerprints[name],
                "conversion": conversion.to_json(),
                **alignment_key(domain),
                **model_key(net),
            },
            device=device,
            reporter=reporter,
            name=name,
            world=world,
        )
        for name, domain in (("source", data.source), ("target", data.target))
        if domain.trunk is None
    }
    plain = {name: reading.plain() for name, reading in readers.items()}
    hits = cache.hits
    reporter.line(
        f"trunk features: {hits} of {len(readers)} domains from the cache, {cache.misses} computed"
    )
    views: dict[str, TrunkViews | None] = dict.fromkeys(readers)
    if data.augment is not None:
        missed = cache.misses
        held_out_too = np.sort(np.concatenate([data.train_rows, data.val_rows]))
        rows = {"source": held_out_too, "target": data.target_rows}
        for name, reading in readers.items():
            views[name] = reading.views(rows[name], data.augment, config)
        reporter.line(
            f"augmented views: {cache.hits - hits} of {len(readers) * config.trunk_views} from the"
            f" cache, {cache.misses - missed} computed"
        )
    if cache.corrupted:
        reporter.line(f"{cache.corrupted} damaged entries of the feature cache were replaced")
    filled: dict[str, Any] = {
        name: replace(reading.domain, trunk=plain[name], views=views[name])
        for name, reading in readers.items()
    }
    return replace(data, **filled, augment=None), hits


def cached_trunk(
    net: AdaptNet, domain: Domain, conversion: dict[str, Any], device: torch.device
) -> Tensor:
    """Return the trunk's features (N, D') of images, from the cache or computed and kept there.

    Args:
        net: a model whose trunk others share, as those of a comparison of frozen runs do.
        domain: the images.
        conversion: how an image file became the model's input, as JSON.
        device: where the trunk runs.

    Raises:
        DaptkitError: the cache cannot be written.
    """
    return _Reading(
        cache=FeatureCache(default_cache_dir() / "features"),
        net=net,
        domain=domain,
        key_parts={
            "data": domain.images.table.fingerprint(),
            "conversion": conversion,
            **alignment_key(domain),
            **model_key(net),
        },
        device=device,
        reporter=SilentReporter(),
        name="images",
        world=ALONE,
    ).plain()


def model_key(net: AdaptNet) -> dict[str, str]:
    """Return what keeps features of a plugin's model apart from those of its other versions.

    With the same weights another version may compute something else; timm's is in every key.
    """
    package = model_package(net.config.name)
    return {} if package is None else {"package": package}


def alignment_key(domain: Domain) -> dict[str, str]:
    """Return what keeps features of changed images apart from those of the images as they are."""
    images = domain.images
    return {"alignment": images.fingerprint} if isinstance(images, AlignedImages) else {}


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """Reads, or computes, the features of one domain."""

    cache: FeatureCache
    net: AdaptNet
    domain: Domain
    key_parts: dict[str, Any]
    device: torch.device
    reporter: Reporter
    name: str
    world: World

    def plain(self) -> Tensor:
        """Return the features (N, D') of the images as they are."""
        return self._read(self.domain.images, {}, f"trunk features of the {self.name}")

    def views(self, rows: Rows, augment: Augment, config: AdaptConfig) -> TrunkViews:
        """Return the features of every view of some rows."""
        place = np.full(len(self.domain), -1, np.int64)
        place[rows] = np.arange(len(rows))
        shape = config.trunk_views, len(rows), self.net.trunk_dim
        features = torch.empty(shape, dtype=torch.float32)
        part = {
            "preset": augment.preset,
            "ranges": None if augment.ranges is None else asdict(augment.ranges),
            "seed": config.seed,
            "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        }
        for number in range(config.trunk_views):
            images = ViewImages(self.domain.images, rows, augment, config.seed, number)
            label = f"view {number + 1} of {config.trunk_views} of the {self.name}"
            # The number alone is in the key, and not how many there are: more views keep the first.
            features[number] = self._read(images, {"view": {**part, "number": number}}, label)
        return TrunkViews(features=features, place=place)

    def _read(self, images: Images, more: dict[str, Any], label: str) -> Tensor:
        with _progress(self.reporter, label) as progress:
            return self.cache.trunk_features(
                self.net,
                images,
                key_parts={**self.key_parts, **more},
                device=self.device,
                batch_size=_BATCH,
                progress=progress,
                share=self.world,
            )


@contextlib.contextmanager
def _progress(reporter: Reporter, label: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many images have passed the trunk, if any has to."""
    shown = False

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if not shown:
            reporter.start(label, total, 0)
            shown = True
        reporter.update(done, {})

    try:
        yield progress
    finally:
        if shown:
            reporter.stop()
