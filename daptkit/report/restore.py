"""A finished run, brought back from its folder and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from daptkit.config import AdaptConfig, resolve_config
from daptkit.errors import DataError, Terminated
from daptkit.host import LoadedMethod, load_methods, method_options, parse_method
from daptkit.model import AdaptNet, StoredAlignment, load_model_folder
from daptkit.report.finished import read_record
from daptkit.run import RunFolder
from daptkit.shift import PredictionRule
from daptkit.train.adaptation import Trained
from daptkit.train.aligning import sights_of
from daptkit.train.alignments import load_alignments
from daptkit.train.crossfit import HeldOut, held_out
from daptkit.train.deliver import Delivered, Passes, read_held_out, run_passes
from daptkit.train.device import Precision, resolve_device
from daptkit.train.domains import TaskData
from daptkit.train.guard import memory_guard
from daptkit.train.inference import SplitPasses
from daptkit.train.inputs import aligned, restored_inputs
from daptkit.train.job import FitResult
from daptkit.train.jobs import JobMaker
from daptkit.train.plugins import plugin_backbones
from daptkit.train.prepare import Prepared, prepare
from daptkit.train.progress import Reporter
from daptkit.train.scratch import scratch_maker


def restore(
    folder: RunFolder,
    reporter: Reporter,
    *,
    device: str = "auto",
    workers: int | None = None,
    trust: bool = False,
    ready: Callable[[Prepared], None] | None = None,
) -> Trained:
    """Load the models of a finished run and pass its data through them again; nothing is written.

    Held-out logits that were cross-fitted come from the run folder; where they are missing or
    damaged they are cross-fitted again, which trains heads on cached features anew.

    Args:
        folder: the run folder.
        reporter: where progress goes.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        trust: load a weights file that carries Python objects; the run's own answer is not taken.
        ready: called once with the decoded data.

    Raises:
        DataError: there is no such run, it is not finished, or its images, labels or models are
            gone or were changed.
        UsageError: a method of the run is not installed.
        PluginError: a method of the run is broken.
    """
    record = read_record(folder)
    config = _config(folder, device=device, trust=trust, workers=workers)
    loaded = tuple(load_methods(parse_method(config.method)))
    with memory_guard(_MEMORY):
        maker = _maker(folder, config, record, _layers(loaded), reporter)
        prepared = maker.prepared
        if ready is not None:
            ready(prepared)
        twin = _delivered(folder.twin if loaded else folder, maker, {})
        # Where the guard has delivered the source-only model, the adapted one is kept apart.
        kept = folder.adapted if folder.adapted.root.is_dir() else folder
        choice = record["figures"].get("selection")
        stop = None if choice is None else choice["epoch"]
        fitted = replace(maker, methods=loaded, stop_epoch=stop)
        adapted = _delivered(kept, fitted, record) if loaded else None
        scratch = None
        if config.from_scratch:
            scratch = _delivered(folder.scratch, scratch_maker(maker), {})
    return Trained(
        folder=folder,
        config=config,
        prepared=prepared,
        twin=twin,
        adapted=adapted,
        scratch=scratch,
        record=record,
    )


@dataclass(frozen=True, kw_only=True)
class RestoredModel:
    """One model of a finished run, and the run's data.

    Args:
        name: ``"source-only"`` or ``"adapted"``.
        config: options of the run.
        prepared: its data.
        net: the model.
        rule: how its logits become predictions.
        passes: of the model over both domains.
    """

    name: str
    config: AdaptConfig
    prepared: Prepared
    net: AdaptNet
    rule: PredictionRule
    passes: Passes


def restore_model(
    folder: RunFolder, reporter: Reporter, *, delivered: bool = False, **given: Any
) -> RestoredModel:
    """Load one model of a finished run and pass its data through it; nothing is written.

    Neither methods nor cross-fitted logits of the run are needed for it.

    Args:
        folder: the run folder.
        reporter: where progress goes.
        delivered: the model that the run delivered; its source-only model otherwise.
        **given: ``device``, ``workers``, ``trust`` and ``cache``, where they differ from the run's.

    Raises:
        DataError, UsageError: as :func:`restore`.
    """
    record = read_record(folder)
    config = _config(folder, **given)
    adapted = bool(parse_method(config.method))
    of = folder.twin if adapted and not delivered else folder
    verdict = record.get("verdict") or {"delivered": "source-only"}
    with memory_guard(_MEMORY):
        maker = _maker(folder, config, record, _layers(()), reporter)
        found = _stored(of, maker)
        passes = run_passes(found.passes)
    return RestoredModel(
        name=verdict["delivered"] if delivered else "source-only",
        config=config,
        prepared=maker.prepared,
        net=found.net,
        rule=found.rule,
        passes=passes,
    )


_MEMORY = "free memory, or use --device cpu"


def _config(folder: RunFolder, **given: Any) -> AdaptConfig:
    known = {name: value for name, value in given.items() if value is not None}
    values = {"out": str(folder.root), "device": "auto", **known}
    return resolve_config(values, folder.config, method_options)


def _maker(
    folder: RunFolder,
    config: AdaptConfig,
    record: Mapping[str, Any],
    layers: tuple[str, ...],
    reporter: Reporter,
) -> JobMaker:
    """Read the run's data, and refuse others than it was made from."""
    for domain, paths in (("source", config.source), ("target", (config.target,))):
        for path in paths:
            # An archive's member or a name that cannot be asked for is told where it is read.
            if not Path(path).exists():
                raise DataError(
                    f"the {domain} images of the run '{folder.root}' are no longer at '{path}';"
                    " bring them back there."
                )
    place = resolve_device(config.device)
    prepared = prepare(config, place, reporter, layers)
    _check_unchanged(prepared.fingerprints, record, folder)
    return JobMaker(
        prepared=prepared,
        config=config,
        precision=Precision(place, enabled=config.amp, dtype=config.amp_dtype),
        reporter=reporter,
    )


def _layers(methods: Sequence[LoadedMethod]) -> tuple[str, ...]:
    taps = (tap for method in methods for tap in method.load_factory().layers)
    return tuple(dict.fromkeys(("features", "logits", *taps)))


def _check_unchanged(
    fingerprints: Mapping[str, str], record: Mapping[str, Any], folder: RunFolder
) -> None:
    before = record["data"]["sha256"]
    changed = [name for name, digest in fingerprints.items() if digest != before.get(name)]
    if changed:
        raise DataError(
            f"images, labels or names of the {' and the '.join(changed)} have changed since the"
            f" run '{folder.root}', so it cannot be measured again; bring the old data back, or"
            " run adapt again in a new --out."
        )


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A model that was brought back, and the run's data as it sees them."""

    net: AdaptNet
    rule: PredictionRule
    alignments: tuple[StoredAlignment, ...]
    passes: SplitPasses
    maker: JobMaker


def _stored(folder: RunFolder, maker: JobMaker) -> _Stored:
    """Load a model with its rule, and make ready to pass the run's data through it."""
    stored = load_model_folder(folder.model, factories=plugin_backbones())
    inputs = restored_inputs(maker, stored.alignments, maker.reporter.line)
    if inputs is not None:
        maker = aligned(maker, inputs)
    net = stored.net.to(maker.precision.device)
    fitted = [one for one in stored.alignments if not one.roles <= {"inputs"}]
    alignments = load_alignments(fitted, maker.reporter.line).to(maker.precision.device)
    return _Stored(
        net=net,
        rule=PredictionRule.from_json(stored.rule),
        alignments=stored.alignments,
        passes=SplitPasses(
            net,
            maker.prepared.data,
            maker.precision,
            delivered=True,
            sights=sights_of(alignments),
        ),
        maker=maker,
    )


def _delivered(folder: RunFolder, maker: JobMaker, record: Mapping[str, Any]) -> Delivered:
    found = _stored(folder, maker)
    net, rule, shared, maker = found.net, found.rule, found.passes, found.maker
    passes = run_passes(shared)
    weights, prior = rule.class_weights, rule.target_prior
    fit = FitResult(
        class_weights=torch.ones(len(rule.classes)) if weights is None else torch.tensor(weights),
        target_prior=None if prior is None else torch.tensor(prior),
        reports=record.get("methods", {}),
        notes=tuple(record.get("figures", {}).get("notes", ())),
        passes=shared,
    )
    return Delivered(
        net=net,
        passes=passes,
        held_out=_held_out(folder, maker, passes),
        rule=rule,
        fit=fit,
        alignments=found.alignments,
    )


def _held_out(folder: RunFolder, maker: JobMaker, passes: Passes) -> HeldOut:
    data = maker.prepared.data
    kept = read_held_out(folder)
    if kept is not None and _fits(kept, data):
        return kept
    try:
        return held_out(data, passes.val_logits, maker.make)
    except Terminated as error:
        # What the trainer says of checkpoints does not hold here: a report has none.
        raise Terminated("terminated; the report was not built.") from error


def _fits(kept: HeldOut, data: TaskData) -> bool:
    assert data.source.labels is not None
    rows = np.sort(np.concatenate([data.train_rows, data.val_rows]))
    width = data.task.num_classes
    return kept.logits.shape == (len(rows), width) and np.array_equal(
        kept.labels, data.source.labels[rows]
    )
