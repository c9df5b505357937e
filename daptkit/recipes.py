"""The pipelines as plain functions: adapt, predict and evaluate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.config import AdaptConfig, resolve_config
from daptkit.data import (
    Conversion,
    ImageSet,
    ImageTable,
    Reader,
    choose_split,
    encode_labels,
    read_table,
)
from daptkit.errors import DataError, UsageError
from daptkit.host import method_options
from daptkit.model import LoadedModel, load_model_folder
from daptkit.run import RunFolder, atomic_write
from daptkit.shift import PredictionRule
from daptkit.train.adaptation import AdaptResult, run_adaptation
from daptkit.train.deliver import predictions_csv
from daptkit.train.device import full_precision, resolve_device
from daptkit.train.domains import Domain
from daptkit.train.guard import memory_guard
from daptkit.train.inference import all_rows, as_numpy, forward_rows
from daptkit.train.plugins import plugin_backbones, plugin_readers
from daptkit.train.progress import Reporter, SilentReporter

DOMAINS = ("target", "source")
_ADVICE = "give fewer images at a time, or use --device cpu"


def adapt(
    config: AdaptConfig | None = None, *, reporter: Reporter | None = None, **values: Any
) -> AdaptResult:
    """Adapt a model from labelled source images to unlabelled target images.

    Args:
        config: a resolved configuration; or give its fields by name instead, for example
            ``adapt(source="a", target="b", method="dann+bbse", out="run")``.
        reporter: where progress goes; nowhere by default.
        **values: fields of :class:`daptkit.config.AdaptConfig`; options of methods as
            ``method_options={"dann": {"weight": 0.5}}``.

    Returns:
        The run folder, the closing summary and the figures behind it.

    Raises:
        UsageError: options that cannot work. DataError: data that cannot be used.
        PluginError: a method that breaks the contract. NonFiniteLossError: training diverged.
    """
    if config is not None and values:
        raise UsageError("give adapt() a configuration or its fields, not both.")
    if config is None:
        config = resolve_config(values, None, method_options)
    return run_adaptation(config, reporter or SilentReporter())


def predict(
    run: str | Path,
    images: str | Path,
    *,
    out: str | Path,
    domain: str = "target",
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: int = 0,
    reporter: Reporter | None = None,
) -> Path:
    """Predict images with the model of a run and write a CSV.

    Args:
        run: run folder, or a model folder.
        images: PATH of images; labels there are not read.
        out: CSV to write: path, split, one probability a class, prediction, confidence.
        domain: ``"target"``, or ``"source"`` for images of the source site.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        skip_unreadable: tolerate and list up to this many unreadable images.
        reporter: where progress goes.

    Raises:
        DataError: images or model that cannot be used.
    """
    report = reporter or SilentReporter()
    loaded, rule = _load(run, domain)
    readers = plugin_readers(report.line)
    table = read_table(
        images, domain=domain, labelled=False, log=report.line, extensions=tuple(readers)
    )
    with memory_guard(_ADVICE):
        image_set = _decode(table, loaded, readers, workers, skip_unreadable, report)
        logits = _logits(loaded, image_set, device)
    atomic_write(Path(out), predictions_csv(image_set.table, logits, rule, domain))
    return Path(out)


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    domain: str = "target",
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: int = 0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Score the model of a run on labelled images.

    Args:
        run: run folder, or a model folder.
        data: PATH of labelled images.
        split: split to score; ``test`` where it exists, else everything; ``"all"`` for everything.
        domain: ``"target"`` or ``"source"``: selects the prior.
        n_bootstrap: resamples behind each interval.
        seed: seed of the resampling.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        skip_unreadable: tolerate and list up to this many unreadable images.
        reporter: where progress goes.

    Returns:
        ``{"n": ..., "accuracy": {"value": ..., "low": ..., "high": ...}, ...}``; see
        :func:`daptkit.assess.metrics.score`.

    Raises:
        DataError: labels or images that cannot be used.
    """
    from daptkit.assess.metrics import score

    report = reporter or SilentReporter()
    loaded, rule = _load(run, domain)
    readers = plugin_readers(report.line)
    table = read_table(
        data, domain=domain, labelled=True, log=report.line, extensions=tuple(readers)
    )
    table = table.select(choose_split(table, split, "test"))
    encode_labels(table, rule.classes)  # an unknown class is an error before anything is decoded
    with memory_guard(_ADVICE):
        image_set = _decode(table, loaded, readers, workers, skip_unreadable, report)
        logits = _logits(loaded, image_set, device)
    return score(
        rule.posterior(logits, domain),
        encode_labels(image_set.table, rule.classes),
        rule.predict(logits, domain, "map"),
        rule.predict(logits, domain, "balanced"),
        rule.classes,
        groups=image_set.table.groups(),
        patients_known=image_set.table.patients_known,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )


def _load(run: str | Path, domain: str) -> tuple[LoadedModel, PredictionRule]:
    if domain not in DOMAINS:
        raise UsageError(f"--domain is target or source, not '{domain}'.")
    folder = RunFolder(run)
    if not folder.root.exists():
        raise DataError(f"the run '{run}' does not exist.")
    if not folder.model.is_dir() and folder.config.exists():
        raise DataError(
            f"the run '{run}' has no model yet; finish it with"
            f" 'daptkit adapt --config {folder.config} --out {run} --resume'."
        )
    found = folder.model if folder.model.is_dir() else folder.root
    loaded = load_model_folder(found, factories=plugin_backbones())
    return loaded, PredictionRule.from_json(loaded.rule)


def _decode(
    table: ImageTable,
    loaded: LoadedModel,
    readers: Mapping[str, Reader],
    workers: int | None,
    skip_unreadable: int,
    report: Reporter,
) -> ImageSet:
    image_set = ImageSet(
        table,
        Conversion.from_json(loaded.conversion),
        workers=workers,
        skip_unreadable=skip_unreadable,
        readers=readers,
    )
    for name, reason in image_set.skipped:
        report.line(f"skipped {name}: {reason}")
    return image_set


def _logits(loaded: LoadedModel, images: ImageSet, device: str) -> npt.NDArray[np.float64]:
    precision = full_precision(resolve_device(device))
    net = loaded.net.to(precision.device)
    domain = Domain(images=images, groups=images.table.groups())
    logits, _ = forward_rows(net, domain, all_rows(domain), precision=precision)
    return as_numpy(logits)
