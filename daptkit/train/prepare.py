"""From a resolved configuration to domains and a model, before any method runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from daptkit.config import AdaptConfig
from daptkit.data import (
    Augment,
    Conversion,
    ImageSet,
    ImageTable,
    Reader,
    auto_preset,
    choose_split,
    class_names,
    concat_tables,
    encode_labels,
    fit_conversion,
    read_table,
    train_val_split,
)
from daptkit.errors import DataError, UsageError
from daptkit.method import TaskInfo
from daptkit.model import AdaptNet, FeatureCache, ModelConfig, default_cache_dir
from daptkit.train.domains import Domain, Rows, TaskData
from daptkit.train.network import NetworkSource, network_source
from daptkit.train.plugins import plugin_readers
from daptkit.train.progress import Reporter


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything a run needs beside its methods.

    Args:
        data: both domains, with cached trunk features when frozen.
        network: makes the model with its initial weights, the same each time.
        conversion: how an image file becomes the model's input.
        augmentation: name of the preset in use.
        fingerprints: SHA-256 of the contents of each domain.
        skipped: (domain, name, reason) of every unreadable image that was tolerated.
    """

    data: TaskData
    network: NetworkSource
    conversion: Conversion
    augmentation: str
    fingerprints: dict[str, str]
    skipped: tuple[tuple[str, str, str], ...]
    cache_hits: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.data.task.classes

    @property
    def model_config(self) -> ModelConfig:
        """Architecture of the model."""
        return self.network.config


def read_source(
    config: AdaptConfig, log: Callable[[str], None], extensions: Collection[str] = ()
) -> ImageTable:
    """Read and join the source tables, and keep the rows trained on and held out."""
    tables = [
        read_table(path, domain="source", labelled=True, log=log, extensions=extensions)
        for path in config.source
    ]
    table = tables[0] if len(tables) == 1 else concat_tables(tables)
    chosen = choose_split(table, config.source_split, "train")
    splits = np.array(table.splits)
    used = set(chosen.tolist())
    if config.source_split != "all" and (splits == "val").any():
        used |= set(np.flatnonzero(splits == "val").tolist())
    return table.select(np.array(sorted(used), dtype=np.int64))


def prepare(
    config: AdaptConfig, device: torch.device, reporter: Reporter, layers: tuple[str, ...]
) -> Prepared:
    """Read both domains and set the model up.

    Args:
        config: options.
        device: where the frozen trunk runs.
        reporter: where progress goes.
        layers: taps that the run's methods read, for their sizes.

    Raises:
        DataError: images, labels or weights cannot be used.
        UsageError: options do not fit together.
    """
    readers = plugin_readers()
    source_table = read_source(config, reporter.line, tuple(readers))
    target_table = read_table(
        config.target,
        domain="target",
        labelled=False,
        log=reporter.line,
        extensions=tuple(readers),
    )
    classes = class_names(source_table.labels or ())
    network = network_source(config, classes)
    classes = network.classes
    conversion = network.conversion or fit_conversion(
        [source_table], img_size=network.config.img_size, in_chans=network.config.in_chans
    )
    reporter.line(f"reading {len(source_table)} source and {len(target_table)} target images")
    source_images = _images(source_table, conversion, config, config.skip_unreadable, readers)
    left = config.skip_unreadable - len(source_images.skipped)
    target_images = _images(target_table, conversion, config, left, readers)
    labels = encode_labels(source_images.table, classes)
    train_rows, val_rows = train_val_split(
        source_images.table,
        labels,
        split=config.source_split,
        val_fraction=config.val_fraction,
        seed=config.seed,
    )
    target_rows = choose_split(target_images.table, config.target_split, "train")
    _check_rows(labels, train_rows, val_rows, target_rows, classes)
    net = network.make(device)
    task = TaskInfo(
        classes=classes,
        dims=net.dims(layers),
        source_prior=_prior(labels[train_rows], len(classes)),
        n_source=len(train_rows),
        n_target=len(target_rows),
    )
    preset = _preset(config, source_images)
    data = TaskData(
        source=Domain(images=source_images, groups=source_images.table.groups(), labels=labels),
        target=Domain(images=target_images, groups=target_images.table.groups()),
        train_rows=train_rows,
        val_rows=val_rows,
        target_rows=target_rows,
        task=task,
        augment=None if preset == "none" else Augment(preset),
    )
    fingerprints = {
        "source": source_images.table.fingerprint(),
        "target": target_images.table.fingerprint(),
    }
    hits = 0
    if config.finetune == "frozen":
        data, hits = _with_trunk(data, net, conversion, fingerprints, device, reporter)
    skipped = tuple(
        (domain, name, reason)
        for domain, images in (("source", source_images), ("target", target_images))
        for name, reason in images.skipped
    )
    return Prepared(
        data=data,
        network=network,
        conversion=conversion,
        augmentation=preset,
        fingerprints=fingerprints,
        skipped=skipped,
        cache_hits=hits,
    )


def _images(
    table: ImageTable,
    conversion: Conversion,
    config: AdaptConfig,
    tolerated: int,
    readers: Mapping[str, Reader],
) -> ImageSet:
    return ImageSet(
        table,
        conversion,
        workers=config.workers,
        skip_unreadable=max(tolerated, 0),
        readers=readers,
    )


def _check_rows(
    labels: Rows, train: Rows, val: Rows, target: Rows, classes: tuple[str, ...]
) -> None:
    if not len(target):
        raise DataError("the target holds no images to adapt to; check --target-split.")
    if not len(val):
        raise DataError(
            "no source images are held out for validation; there are too few per class."
        )
    counts = np.bincount(labels[train], minlength=len(classes))
    if (counts > 0).sum() < 2:
        raise DataError("the source's training images show fewer than two classes.")


def _prior(labels: Rows, num_classes: int) -> torch.Tensor:
    counts = torch.bincount(torch.from_numpy(labels), minlength=num_classes).double()
    return (counts / counts.sum()).float()


def _preset(config: AdaptConfig, images: ImageSet) -> str:
    if config.finetune == "frozen":
        if config.aug not in ("auto", "none"):
            raise UsageError(
                f"--aug {config.aug}: a frozen run reads cached features of the images as they are;"
                " use --aug none, or --finetune full."
            )
        return "none"
    return auto_preset(images) if config.aug == "auto" else config.aug


def _with_trunk(
    data: TaskData,
    net: AdaptNet,
    conversion: Conversion,
    fingerprints: dict[str, str],
    device: torch.device,
    reporter: Reporter,
) -> tuple[TaskData, int]:
    cache = FeatureCache(default_cache_dir() / "features")
    found: dict[str, Any] = {}
    for name, domain in (("source", data.source), ("target", data.target)):
        found[name] = cache.trunk_features(
            net,
            domain.images,
            key_parts={"data": fingerprints[name], "conversion": conversion.to_json()},
            device=device,
            batch_size=64,
        )
    reporter.line(
        f"trunk features: {cache.hits} of 2 domains from the cache, {cache.misses} computed"
    )
    return (
        replace(
            data,
            source=replace(data.source, trunk=found["source"]),
            target=replace(data.target, trunk=found["target"]),
        ),
        cache.hits,
    )


def state_hash(net: AdaptNet) -> str:
    """Return the SHA-256 of every tensor of a model, names included."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
