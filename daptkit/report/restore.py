"""A finished run, brought back from its folder and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from daptkit.config import resolve_config
from daptkit.errors import DataError, Terminated
from daptkit.host import LoadedMethod, load_methods, method_options, parse_method
from daptkit.model import load_model_folder
from daptkit.report.finished import read_record
from daptkit.run import RunFolder
from daptkit.shift import PredictionRule
from daptkit.train.adaptation import Trained
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
    given: dict[str, Any] = {"out": str(folder.root), "device": device, "trust": trust}
    if workers is not None:
        given["workers"] = workers
    config = resolve_config(given, folder.config, method_options)
    loaded = tuple(load_methods(parse_method(config.method)))
    place = resolve_device(device)
    with memory_guard("free memory, or use --device cpu"):
        prepared = prepare(config, place, reporter, _layers(loaded))
        _check_unchanged(prepared.fingerprints, record, folder)
        if ready is not None:
            ready(prepared)
        maker = JobMaker(
            prepared=prepared,
            config=config,
            precision=Precision(place, enabled=config.amp, dtype=config.amp_dtype),
            reporter=reporter,
        )
        twin = _delivered(folder.twin if loaded else folder, maker, {})
        # Where the guard has delivered the source-only model, the adapted one is kept apart.
        kept = folder.adapted if folder.adapted.root.is_dir() else folder
        adapted = _delivered(kept, replace(maker, methods=loaded), record) if loaded else None
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


def _delivered(folder: RunFolder, maker: JobMaker, record: Mapping[str, Any]) -> Delivered:
    stored = load_model_folder(folder.model, factories=plugin_backbones())
    inputs = restored_inputs(maker, stored.alignments, maker.reporter.line)
    if inputs is not None:
        maker = aligned(maker, inputs)
    rule = PredictionRule.from_json(stored.rule)
    net = stored.net.to(maker.precision.device)
    data = maker.prepared.data
    shared = SplitPasses(net, data, maker.precision, delivered=True)
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
        alignments=stored.alignments,
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
