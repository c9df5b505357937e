"""From a resolved configuration to domains and a model, before any method runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

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
from daptkit.data.image import Log
from daptkit.errors import DataError, UsageError
from daptkit.method import TaskInfo
from daptkit.model import ModelConfig
from daptkit.shift import parse_decide
from daptkit.train.domains import Domain, TaskData, class_shares
from daptkit.train.network import NetworkSource, network_source
from daptkit.train.plugins import plugin_readers
from daptkit.train.progress import Reporter
from daptkit.train.trunk import check_taps, with_trunk


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
        cache_hits: domains whose trunk features were in the cache.
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
    readers = plugin_readers(reporter.line)
    source_table, target_table = _tables(config, reporter.line, tuple(readers))
    network = network_source(config, class_names(source_table.labels))
    classes = network.classes
    parse_decide(config.decide, classes)  # a wrong rule is an error before anything is trained
    conversion = network.conversion or fit_conversion(
        [source_table, target_table],
        img_size=network.config.img_size,
        in_chans=network.config.in_chans,
        readers=readers,
    )
    net = network.make(device)
    dims = net.dims(layers)
    if config.finetune == "frozen":
        check_taps(net, layers)
    reporter.line(f"reading {len(source_table)} source and {len(target_table)} target images")
    source_images = _images(source_table, conversion, config, config.skip_unreadable, readers)
    left = config.skip_unreadable - len(source_images.skipped)
    target_images = _images(target_table, conversion, config, left, readers)
    skipped = tuple(
        (domain, name, reason)
        for domain, images in (("source", source_images), ("target", target_images))
        for name, reason in images.skipped
    )
    for domain, name, reason in skipped:
        reporter.line(f"skipped in the {domain}: {name}: {reason}")
    preset = _preset(config, source_images)
    data = _task_data(config, source_images, target_images, classes, dims, preset, reporter.line)
    fingerprints = {
        "source": source_images.table.fingerprint(),
        "target": target_images.table.fingerprint(),
    }
    hits = 0
    if config.finetune == "frozen":
        data, hits = with_trunk(data, net, conversion, fingerprints, device, reporter)
    return Prepared(
        data=data,
        network=network,
        conversion=conversion,
        augmentation=preset,
        fingerprints=fingerprints,
        skipped=skipped,
        cache_hits=hits,
    )


def _tables(
    config: AdaptConfig, log: Log, extensions: Collection[str]
) -> tuple[ImageTable, ImageTable]:
    """Read both tables; of the source, keep the rows that are trained on or held out."""
    source = concat_tables(
        [
            read_table(path, domain="source", labelled=True, log=log, extensions=extensions)
            for path in config.source
        ]
    )
    chosen = choose_split(source, config.source_split, "train")
    held_out = np.flatnonzero(np.array(source.splits) == "val")
    source = source.select(np.union1d(chosen, held_out))
    target = read_table(
        config.target, domain="target", labelled=False, log=log, extensions=extensions
    )
    choose_split(target, config.target_split, "train")
    return source, target


def _task_data(
    config: AdaptConfig,
    source: ImageSet,
    target: ImageSet,
    classes: tuple[str, ...],
    dims: Mapping[str, int],
    preset: str,
    log: Log,
) -> TaskData:
    labels = encode_labels(source.table, classes)
    train_rows, val_rows = train_val_split(
        source.table,
        labels,
        split=config.source_split,
        val_fraction=config.val_fraction,
        seed=config.seed,
        log=log,
    )
    target_rows = choose_split(target.table, config.target_split, "train")
    prior = class_shares(labels[train_rows], len(classes))
    absent = [name for name, share in zip(classes, prior.tolist(), strict=True) if share == 0]
    if len(classes) - len(absent) < 2:
        raise DataError("the source's training images show fewer than two classes.")
    if absent:
        log(f"warning: the source has no training images of class {', '.join(absent)}.")
    return TaskData(
        source=Domain(images=source, groups=source.table.groups(), labels=labels),
        target=Domain(images=target, groups=target.table.groups()),
        train_rows=train_rows,
        val_rows=val_rows,
        target_rows=target_rows,
        task=TaskInfo(
            classes=classes,
            dims=dims,
            source_prior=prior,
            n_source=len(train_rows),
            n_target=len(target_rows),
        ),
        augment=None if preset == "none" else Augment(preset),
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
        skip_unreadable=tolerated,
        readers=readers,
    )


def _preset(config: AdaptConfig, images: ImageSet) -> str:
    if config.finetune == "frozen":
        if config.aug not in ("auto", "none"):
            raise UsageError(
                f"--aug {config.aug}: a frozen run reads cached features of the images as they are;"
                " use --aug none, or --finetune full."
            )
        return "none"
    return auto_preset(images) if config.aug == "auto" else config.aug
