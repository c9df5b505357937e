"""From a resolved configuration to domains and a model, before any method runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from daptkit.config import AdaptConfig
from daptkit.data import (
    Augment,
    Conversion,
    ImageSet,
    choose_split,
    class_names,
    encode_labels,
    fit_conversion,
    parse_window,
    train_val_split,
)
from daptkit.data.image import Log
from daptkit.errors import DataError, UsageError
from daptkit.method import TaskInfo
from daptkit.model import ModelConfig
from daptkit.shift import parse_decide
from daptkit.train.augmentation import augmentation, check_augmentation
from daptkit.train.domains import Domain, TaskData, class_shares
from daptkit.train.network import NetworkSource, network_source
from daptkit.train.plugins import model_warning, parse_reader_options, plugin_readers
from daptkit.train.progress import Reporter
from daptkit.train.tables import decode_cache, read_tables
from daptkit.train.trunk import check_taps, with_trunk
from daptkit.train.world import ALONE, World


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
        overlaps: where patients are in two places that must not share any, to their number.
        cache_hits: domains whose trunk features were in the cache.
    """

    data: TaskData
    network: NetworkSource
    conversion: Conversion
    augmentation: str
    fingerprints: dict[str, str]
    skipped: tuple[tuple[str, str, str], ...]
    overlaps: Mapping[str, int]
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
    config: AdaptConfig,
    device: torch.device,
    reporter: Reporter,
    layers: tuple[str, ...],
    world: World = ALONE,
) -> Prepared:
    """Read both domains and set the model up.

    Args:
        config: options.
        device: where the frozen trunk runs.
        reporter: where progress goes.
        layers: taps that the run's methods read, for their sizes.
        world: processes of the run. One of each node decodes the images, the others read them from
            the cache; all share the forwards of a frozen trunk.

    Raises:
        DataError: images, labels or weights cannot be used, or differ between the processes.
        UsageError: options do not fit together.
    """
    prepared = world.node_by_node(lambda: _read(config, device, reporter, layers))
    check_same_data(prepared.fingerprints, world)
    if config.finetune != "frozen":
        return prepared
    data, hits = with_trunk(
        prepared.data,
        prepared.network.make(device),
        prepared.conversion,
        prepared.fingerprints,
        device,
        reporter,
        config,
        world,
    )
    return replace(prepared, data=data, cache_hits=hits)


def _read(
    config: AdaptConfig, device: torch.device, reporter: Reporter, layers: tuple[str, ...]
) -> Prepared:
    """Read both domains and set the model up, without any forward but for sizes."""
    check_augmentation(config)
    fixed = None if config.window is None else parse_window(config.window)
    if config.trust:
        reporter.line("warning: --trust: a weights file that carries code runs it when loaded.")
    readers = plugin_readers(reporter.line, parse_reader_options(config.reader_options))
    tables = read_tables(config, readers, reporter.line)
    network = network_source(config, class_names(tables.source.labels))
    loaded = None if network.weights is None else network.weights.warning
    for warning in (model_warning(network.config.name), loaded):
        if warning is not None:
            reporter.line(warning)
    classes = network.classes
    # A wrong rule or a missing label is an error before anything is decoded.
    parse_decide(config.decide, classes)
    encode_labels(tables.source, classes)
    conversion = fit_conversion(
        [tables.source, tables.target],
        img_size=network.config.img_size,
        in_chans=network.config.in_chans,
        readers=readers,
        frames=config.frames,
        fixed=fixed,
    )
    if network.conversion is not None:
        conversion = _stored(network.conversion, conversion)
    _check_window(fixed, conversion, reporter.line)
    net = network.make(device)
    dims = net.dims(layers)
    if config.finetune == "frozen":
        check_taps(net, layers)
    reporter.line(f"reading {len(tables.source)} source and {len(tables.target)} target images")
    reading: dict[str, Any] = {
        "workers": config.workers,
        "readers": readers,
        "cache": decode_cache(config.cache, reporter.line),
    }
    tolerated = config.skip_unreadable
    source_images = ImageSet(tables.source, conversion, skip_unreadable=tolerated, **reading)
    tolerated -= len(source_images.skipped)
    target_images = ImageSet(tables.target, conversion, skip_unreadable=tolerated, **reading)
    _tell_of_cache(reporter.line, source_images, target_images)
    skipped = tuple(
        (domain, name, reason)
        for domain, images in (("source", source_images), ("target", target_images))
        for name, reason in images.skipped
    )
    for domain, name, reason in skipped:
        reporter.line(f"skipped in the {domain}: {name}: {reason}")
    preset = augmentation(config, source_images)
    data = _task_data(config, source_images, target_images, classes, dims, preset, reporter.line)
    fingerprints = {
        "source": source_images.table.fingerprint(),
        "target": target_images.table.fingerprint(),
    }
    return Prepared(
        data=data,
        network=network,
        conversion=conversion,
        augmentation=preset,
        fingerprints=fingerprints,
        skipped=skipped,
        overlaps=tables.overlaps,
        cache_hits=0,
    )


def check_same_data(fingerprints: dict[str, str], world: World) -> None:
    """Refuse processes that see other images or labels than the first one.

    Raises:
        DataError: the domain and the first process that differs are named.
    """
    first, *others = world.all_of(fingerprints)
    for rank, found in enumerate(others, start=1):
        for name, fingerprint in found.items():
            if fingerprint != first[name]:
                error = DataError(
                    f"process {rank + 1} of {world.size} finds other {name} images or labels than"
                    " the first one; --source and --target must be the same files on every node."
                )
                error.told_elsewhere = not world.leads
                raise error


def _stored(stored: Conversion, fitted: Conversion) -> Conversion:
    """Return the conversion of a model that the run starts from, if the run reads files alike.

    Raises:
        UsageError: frames or options of readers differ from the model's own.
    """
    wanted = [] if stored.frames == fitted.frames else [_flag("--frames", "", stored.frames)]
    for name in sorted(set(stored.readers) & set(fitted.readers)):
        own, asked = stored.readers[name]["options"], fitted.readers[name]["options"]
        wanted += [
            _flag("--reader-options", f"{name}.{option}", own.get(option))
            for option in sorted({*own, *asked})
            if own.get(option) != asked.get(option)
        ]
    if wanted:
        raise UsageError(
            f"the model of --init-from read its images in another way; give {', '.join(wanted)}."
        )
    return replace(stored, readers={**fitted.readers, **stored.readers})


def _flag(flag: str, option: str, value: Any) -> str:
    if value is None:
        return f"no {flag} {option}".rstrip()
    return f"{flag} {option}={value}" if option else f"{flag} {value}"


def _check_window(fixed: tuple[float, float] | None, conversion: Conversion, log: Log) -> None:
    """Refuse a ``--window`` other than that of ``--init-from``, and tell of one without use.

    Raises:
        UsageError: the model that the run starts from has another window.
    """
    if fixed is None:
        return
    deep = {kind: window for kind, window in conversion.windows.items() if kind != "display"}
    if not deep:
        log(
            "warning: --window is not used: every image that was sampled is 8 bit, or says itself"
            " what to show."
        )
    for low, high in deep.values():
        if (low, high) != fixed:
            raise UsageError(
                f"--window: the model of --init-from has the window {low:g}:{high:g}; leave"
                " --window out."
            )


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


def _tell_of_cache(log: Log, *domains: ImageSet) -> None:
    kept = sum(len(images) + len(images.skipped) - images.decoded for images in domains)
    if kept:
        log(f"{kept} of {sum(map(len, domains))} images were decoded by an earlier run")
