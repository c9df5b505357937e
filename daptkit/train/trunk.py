"""Trunk features of a frozen run, from the cache or computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from daptkit.data import Conversion
from daptkit.model import AdaptNet, FeatureCache, default_cache_dir
from daptkit.model.network import evaluating
from daptkit.train.domains import TaskData
from daptkit.train.progress import Reporter

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
) -> tuple[TaskData, int]:
    """Return the data with the trunk's features of both domains, and how many were cached.

    Args:
        data: both domains, with images.
        net: the model; its trunk is run where the cache has nothing.
        conversion: how an image file became the model's input.
        fingerprints: hash of the contents of each domain.
        device: where the trunk runs.
        reporter: where progress goes.

    Raises:
        DaptkitError: the cache cannot be written.
    """
    cache = FeatureCache(default_cache_dir() / "features")
    found: dict[str, Tensor] = {}
    for name, domain in (("source", data.source), ("target", data.target)):
        with _progress(reporter, f"trunk features of the {name}") as progress:
            found[name] = cache.trunk_features(
                net,
                domain.images,
                key_parts={"data": fingerprints[name], "conversion": conversion.to_json()},
                device=device,
                batch_size=_BATCH,
                progress=progress,
            )
    reporter.line(
        f"trunk features: {cache.hits} of 2 domains from the cache, {cache.misses} computed"
    )
    if cache.corrupted:
        reporter.line(f"{cache.corrupted} damaged entries of the feature cache were replaced")
    source = replace(data.source, trunk=found["source"])
    target = replace(data.target, trunk=found["target"])
    return replace(data, source=source, target=target), cache.hits


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
