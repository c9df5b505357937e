"""One `daptkit adapt` run from its configuration to its folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import daptkit
from daptkit.assess.summary import summary_text
from daptkit.config import AdaptConfig, from_toml, read_file, to_toml
from daptkit.errors import PluginError, UsageError
from daptkit.host import LoadedMethod, load_methods, parse_method
from daptkit.run import RunFolder, atomic_write, write_json
from daptkit.train.accumulate import check_parts
from daptkit.train.compiling import check_compile
from daptkit.train.deliver import Delivered
from daptkit.train.device import Precision
from daptkit.train.events import run_ended, run_started
from daptkit.train.gradual import read_unfreezings
from daptkit.train.guard import memory_guard, processes_guard
from daptkit.train.inputs import fit_inputs
from daptkit.train.jobs import JobMaker
from daptkit.train.models import train_methods, train_twin
from daptkit.train.prepare import Prepared, prepare
from daptkit.train.progress import Reporter
from daptkit.train.record import provenance, run_figures
from daptkit.train.scoreset import LAST, ScoreSet, load_score_set
from daptkit.train.scratch import scratch_maker
from daptkit.train.world import ALONE, World, check_shared_batch, spoken_by

_SUPPORTED_NEEDS = frozenset({"source", "source_labels", "target"})
_SUPPORTED_ROLES = frozenset({"class_weights", "target_prior", "inputs", "features", "norm"})
# Options that may differ between a run and its continuation.
_FREE_AT_RESUME = frozenset(
    {"resume", "out", "device", "workers", "report", "cache", "auto_batch", "guard"}
)


@dataclass(frozen=True)
class AdaptResult:
    """What a run delivers: its folder, the closing summary as text, and the figures behind it.

    ``leads`` is false on every process but the first of a run that several did together.
    """

    out: Path
    summary: str
    data: dict[str, Any]
    leads: bool = True


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished run, its models still in memory.

    Args:
        folder: the run folder.
        config: options.
        prepared: data and classes.
        twin: the source-only model.
        adapted: the model of the methods; ``None`` in a source-only run.
        scratch: the same network from random weights, where it was asked for.
        record: what ``run.json`` holds.
        world: processes that trained it.
        scores: what its epochs were scored by.
    """

    folder: RunFolder
    config: AdaptConfig
    prepared: Prepared
    twin: Delivered
    adapted: Delivered | None
    scratch: Delivered | None = None
    record: dict[str, Any]
    world: World = ALONE
    scores: ScoreSet = field(default_factory=ScoreSet)

    @property
    def result(self) -> AdaptResult:
        """What the caller of a run gets."""
        summary = summary_text(self.record["figures"], self.record["verdict"])
        return AdaptResult(self.folder.root, summary, self.record, self.world.leads)


def run_adaptation(
    config: AdaptConfig,
    reporter: Reporter,
    ready: Callable[[Prepared], None] | None = None,
    world: World = ALONE,
) -> Trained:
    """Run the whole job; see :func:`daptkit.recipes.adapt`.

    Args:
        config: options.
        reporter: where progress goes.
        ready: called once with the decoded data, before anything is trained.
        world: processes that do it together; the first one writes and tells.
    """
    advice = f"try a --batch-size below {config.batch_size}, or a smaller --img-size or --model"
    with contextlib.ExitStack() as held, spoken_by(world), processes_guard(), memory_guard(advice):
        return _run(config, reporter, ready, world, held)


def _run(
    config: AdaptConfig,
    reporter: Reporter,
    ready: Callable[[Prepared], None] | None,
    world: World,
    held: contextlib.ExitStack,
) -> Trained:
    began = time.monotonic()
    loaded, precision = world.node_by_node(lambda: _start(config, world))
    layers = world.node_by_node(lambda: _layers(loaded))
    scores = world.node_by_node(lambda: load_score_set(config.select, reporter.line))
    folder = RunFolder(config.out)
    world.first(lambda: _open(folder, config, held))
    world.node_by_node(lambda: check_compile(config, loaded, precision.device, reporter))
    prepared = prepare(config, precision.device, reporter, layers, world)
    if ready is not None:
        ready(prepared)
    decoded = time.monotonic()
    maker = JobMaker(
        prepared=prepared,
        config=config,
        precision=precision,
        reporter=reporter,
        methods=tuple(loaded),
        world=world,
        scores=scores,
    )
    if not loaded and config.select != LAST:
        reporter.line("--select chooses among epochs of a method; without one it is the last.")
    # What a plugin has against the task should not wait for the source-only model.
    world.node_by_node(maker.try_methods)
    inputs = fit_inputs(maker)
    # Only now is there something to continue: a mistyped PATH, or images that a method cannot
    # use, leave --out as it was.
    world.first(lambda: _keep_config(folder, config))
    world.first(lambda: run_started(config, loaded))
    # A source-only run is its own twin.
    twin, cached = train_twin(folder.twin if loaded else folder, maker)
    scratch = None
    if config.from_scratch:
        scratch, _ = train_twin(folder.scratch, scratch_maker(maker))
    adapted, judgement = (
        train_methods(folder, maker, twin, scratch, inputs) if loaded else (None, None)
    )
    trained = time.monotonic()

    def record() -> dict[str, Any]:
        figures = run_figures(config, prepared, twin, adapted, scratch)
        if config.finetune == "gradual":
            places = {"source-only": folder.twin, "adapted": folder}
            figures["unfreezing"] = {
                name: read_unfreezings(place.metrics)
                for name, place in (places if loaded else {"source-only": folder}).items()
            }
        timings = {
            "prepare_seconds": decoded - began,
            "train_seconds": trained - decoded,
            "total_seconds": time.monotonic() - began,
        }
        content = {
            **provenance(loaded, prepared, config, precision, world.size),
            "twin": "self" if not loaded else ("cached" if cached else "trained"),
            "timings": {name: round(value, 3) for name, value in timings.items()},
            "grad_accum_steps": {
                name: done.fit.parts
                for name, done in (("twin", twin), ("adapted", adapted))
                if done
            },
            "methods": (adapted or twin).fit.reports,
            "images": None if inputs is None else inputs.to_json(),
            "figures": figures,
            "verdict": None if judgement is None else judgement.to_json(),
        }
        write_json(folder.record, content)
        run_ended(config, content)
        return content

    return Trained(
        folder=folder,
        config=config,
        prepared=prepared,
        twin=twin,
        adapted=adapted,
        scratch=scratch,
        record=world.first(record),
        world=world,
        scores=scores,
    )


def _start(config: AdaptConfig, world: World) -> tuple[list[LoadedMethod], Precision]:
    """Check the options, and return the methods, and the device and precision of the step."""
    check_shared_batch(config.batch_size, world.size)
    check_parts(config.batch_size, config.grad_accum_steps, world.size)
    if config.auto_batch and world.size > 1:
        raise UsageError(
            "--auto-batch is for one process; give several --grad-accum-steps, such as 2."
        )
    loaded = load_methods(parse_method(config.method))
    check_methods(loaded, config)
    device = world.device(config.device)
    return loaded, Precision(device, enabled=config.amp, dtype=config.amp_dtype)


def _open(folder: RunFolder, config: AdaptConfig, held: contextlib.ExitStack) -> None:
    """Make the folder, or continue the one that is there, and keep it locked."""
    folder.open_for_writing(resume=config.resume)
    held.enter_context(folder.locked())
    check_continued(folder, config)


def _keep_config(folder: RunFolder, config: AdaptConfig) -> None:
    if not folder.config.exists():
        atomic_write(folder.config, to_toml(config))


def check_methods(loaded: Sequence[LoadedMethod], config: AdaptConfig) -> None:
    """Check that this host offers what the methods ask for.

    Raises:
        UsageError: it does not, or there is nothing that a method could align.
    """
    for method in loaded:
        spec = method.spec
        unmet = sorted((spec.needs - _SUPPORTED_NEEDS) | (spec.roles - _SUPPORTED_ROLES))
        if unmet or not {"source", "target"} <= spec.needs:
            what = ", ".join(unmet) or "a run without source images"
            raise UsageError(
                f"method '{spec.name}' ({method.package} {method.version}) asks for {what}, which"
                f" daptkit {daptkit.__version__} does not offer."
            )
        if spec.trains != "none" and config.finetune == "frozen" and config.bottleneck == 0:
            raise UsageError(
                f"method '{spec.name}' has nothing to align: the trunk is frozen and --bottleneck"
                " is 0. Give --bottleneck 256, or --finetune full."
            )


def _layers(loaded: Sequence[LoadedMethod]) -> tuple[str, ...]:
    """Return the taps that the methods read, beside those that every model has."""
    layers = ["features", "logits"]
    for method in loaded:
        taps = method.load_factory().layers
        if not isinstance(taps, tuple) or not all(isinstance(tap, str) for tap in taps):
            raise PluginError(
                f"method '{method.spec.name}' ({method.package} {method.version}): layers must be"
                f" a tuple of names, not {taps!r}."
            )
        layers += taps
    return tuple(dict.fromkeys(layers))


def check_continued(folder: RunFolder, config: AdaptConfig) -> None:
    """Check that a continued run was started with the same options."""
    if not folder.config.exists():
        return
    before = from_toml(read_file(folder.config), str(folder.config))
    after = from_toml(to_toml(config), str(folder.config))
    changed = sorted(
        name
        for name in {**before, **after}
        if name not in _FREE_AT_RESUME and before.get(name) != after.get(name)
    )
    if changed:
        flags = ", ".join(flag for name in changed for flag in _flags(name, before, after))
        raise UsageError(
            f"--resume: the run was started with another {flags}; continue it with"
            f" '--config {folder.config}', or start again in a new --out."
        )


def _flags(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the flags of an option that changed: of methods' options, those that did."""
    if name != "method_options":
        return ["--" + name.replace("_", "-")]
    then, now = before.get(name, {}), after.get(name, {})
    return [
        "--" + f"{method}.{option}".replace("_", "-")
        for method in sorted({*then, *now})
        for option in sorted({*then.get(method, {}), *now.get(method, {})})
        if then.get(method, {}).get(option) != now.get(method, {}).get(option)
    ]
