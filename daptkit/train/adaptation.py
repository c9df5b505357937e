"""One `daptkit adapt` run from its configuration to its folder."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch

import daptkit
from daptkit.assess.summary import collapse_check, summary_text, validation_score
from daptkit.config import AdaptConfig, from_toml, to_toml
from daptkit.errors import UsageError
from daptkit.host import LoadedMethod, load_methods, parse_method
from daptkit.model import AdaptNet
from daptkit.run import RunFolder, atomic_write, write_json
from daptkit.shift import PredictionRule, divergences
from daptkit.train.crossfit import held_out
from daptkit.train.deliver import Passes, deliver, run_passes
from daptkit.train.device import Precision, resolve_device
from daptkit.train.job import FitResult
from daptkit.train.jobs import JobMaker
from daptkit.train.loop import Trainer
from daptkit.train.prepare import Prepared, prepare
from daptkit.train.progress import Reporter
from daptkit.train.twin import keep_twin, obtain_twin

_SUPPORTED_NEEDS = frozenset({"source", "source_labels", "target"})
_SUPPORTED_ROLES = frozenset({"class_weights", "target_prior"})
# Options that may differ between a run and its continuation.
_FREE_AT_RESUME = frozenset({"resume", "out", "device", "workers"})


@dataclass(frozen=True)
class AdaptResult:
    """What a run delivers: its folder, the closing summary as text, and the figures behind it."""

    out: Path
    summary: str
    data: dict[str, Any]


@dataclass(frozen=True)
class _Model:
    """A delivered model: its passes over both domains and its prediction rule."""

    passes: Passes
    rule: PredictionRule
    fit: FitResult


def run_adaptation(config: AdaptConfig, reporter: Reporter) -> AdaptResult:
    """Run the whole job; see :func:`daptkit.recipes.adapt`."""
    began = time.monotonic()
    loaded = load_methods(parse_method(config.method))
    _check_methods(loaded, config)
    precision = Precision(resolve_device(config.device), enabled=config.amp, dtype=config.amp_dtype)
    folder = RunFolder(config.out)
    folder.open_for_writing(resume=config.resume)
    with folder.locked():
        _record_config(folder, config)
        layers = tuple(dict.fromkeys(tap for m in loaded for tap in m.load_factory().layers))
        prepared = prepare(config, precision.device, reporter, ("features", "logits", *layers))
        for domain, name, reason in prepared.skipped:
            reporter.line(f"skipped in the {domain}: {name}: {reason}")
        ready = time.monotonic()
        maker = JobMaker(
            prepared=prepared,
            config=config,
            precision=precision,
            reporter=reporter,
            methods=tuple(loaded),
        )
        twin, cached = _train_twin(folder.twin if loaded else folder, maker)
        adapted = _train_methods(folder, maker) if loaded else twin
        trained = time.monotonic()
        figures = _figures(config, loaded, prepared, twin, adapted)
        timings = {
            "prepare_seconds": ready - began,
            "train_seconds": trained - ready,
            "total_seconds": time.monotonic() - began,
        }
        record = {
            **_provenance(loaded, prepared, config, precision),
            "twin": "self" if not loaded else ("cached" if cached else "trained"),
            "timings": {name: round(value, 3) for name, value in timings.items()},
            "methods": adapted.fit.reports,
            "figures": figures,
            "verdict": None,
        }
        write_json(folder.record, record)
    return AdaptResult(folder.root, summary_text(figures), record)


def _check_methods(loaded: Sequence[LoadedMethod], config: AdaptConfig) -> None:
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


def _record_config(folder: RunFolder, config: AdaptConfig) -> None:
    """Write run.toml, or check that a continued run was started with the same options."""
    if folder.config.exists():
        before = from_toml(folder.config.read_text(), folder.config.name)
        after = from_toml(to_toml(config), folder.config.name)
        changed = sorted(
            name
            for name in {**before, **after}
            if name not in _FREE_AT_RESUME and before.get(name) != after.get(name)
        )
        if changed:
            flags = ", ".join("--" + name.replace("_", "-") for name in changed)
            raise UsageError(
                f"--resume: the run was started with another {flags}; continue it with"
                f" '--config {folder.config}', or start again in a new --out."
            )
    else:
        atomic_write(folder.config, to_toml(config))


def _train_twin(folder: RunFolder, maker: JobMaker) -> tuple[_Model, bool]:
    """Train, or reuse, the source-only model; a source-only run is its own twin."""
    twin = obtain_twin(folder, maker)
    model = _deliver(folder, replace(maker, methods=()), twin.net, twin.fit)
    if not twin.cached:
        keep_twin(folder, maker)
    return model, twin.cached


def _train_methods(folder: RunFolder, maker: JobMaker) -> _Model:
    job = maker.make(maker.prepared.data, folder)
    return _deliver(folder, maker, job.net, Trainer(job).run())


def _deliver(folder: RunFolder, maker: JobMaker, net: AdaptNet, fit: FitResult) -> _Model:
    prepared = maker.prepared
    passes = run_passes(net, prepared, maker.precision)
    apart = held_out(prepared.data, passes, maker.make)
    meta = _model_meta(maker.methods, prepared)
    rule = deliver(folder, net, prepared, passes, apart, fit, maker.config.decide, meta)
    return _Model(passes, rule, fit)


def _model_meta(loaded: Sequence[LoadedMethod], prepared: Prepared) -> dict[str, Any]:
    weights = prepared.network.weights
    return {
        "methods": {m.spec.name: f"{m.package} {m.version}" for m in loaded},
        "pretrained": None if weights is None else {"sha256": weights.sha256},
        "data": prepared.fingerprints,
    }


def _provenance(
    loaded: Sequence[LoadedMethod], prepared: Prepared, config: AdaptConfig, precision: Precision
) -> dict[str, Any]:
    data = prepared.data
    return {
        "method": config.method,
        "seed": config.seed,
        "versions": {
            "daptkit": daptkit.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": timm.__version__,
        },
        "plugins": {m.spec.name: {"package": m.package, "version": m.version} for m in loaded},
        "device": precision.device.type,
        "model": {
            "name": prepared.model_config.name,
            "weights": _model_meta(loaded, prepared)["pretrained"],
        },
        "augmentation": prepared.augmentation,
        "data": {
            "sha256": prepared.fingerprints,
            "classes": list(prepared.classes),
            "source_train": len(data.train_rows),
            "source_val": len(data.val_rows),
            "target": len(data.target_rows),
            "patients_known": {
                "source": data.source.images.table.patients_known,
                "target": data.target.images.table.patients_known,
            },
            "skipped_unreadable": len(prepared.skipped),
            "trunk_features_from_cache": prepared.cache_hits,
        },
    }


def _figures(
    config: AdaptConfig,
    loaded: Sequence[LoadedMethod],
    prepared: Prepared,
    twin: _Model,
    adapted: _Model,
) -> dict[str, Any]:
    data, classes = prepared.data, prepared.classes
    assert data.source.labels is not None
    labels = data.source.labels[data.val_rows]
    columns = {"source-only": twin, **({"adapted": adapted} if loaded else {})}
    predicted = adapted.rule.predict(adapted.passes.target_logits[data.target_rows])
    check = collapse_check(predicted, classes)
    return {
        "method": config.method,
        "n_target": len(data.target_rows),
        "source_validation": {
            name: vars(
                validation_score(model.rule.predict(model.passes.val_logits, "source"), labels)
            )
            for name, model in columns.items()
        },
        "divergence": {
            name: divergences(
                model.passes.source_features,
                model.passes.target_features[data.target_rows],
                source_groups=data.source.groups[model.passes.source_rows],
                target_groups=data.target.groups[data.target_rows],
                seed=config.seed,
            )
            for name, model in columns.items()
        },
        "prior": _prior_figures(prepared, columns, adapted),
        "collapse": {
            "fractions": check.fractions,
            "never": list(check.never),
            "collapsed": check.collapsed,
        },
        "notes": list(adapted.fit.notes),
    }


def _prior_figures(
    prepared: Prepared, columns: Mapping[str, _Model], adapted: _Model
) -> dict[str, dict[str, float] | None]:
    data, classes = prepared.data, prepared.classes

    def named(values: Any) -> dict[str, float]:
        return {c: float(v) for c, v in zip(classes, values, strict=True)}

    def mean_posterior(model: _Model) -> dict[str, float]:
        logits = model.passes.target_logits[data.target_rows]
        return named(model.rule.posterior(logits).mean(axis=0))

    prior = adapted.fit.target_prior
    both = len(columns) > 1
    return {
        "source": named(data.task.source_prior.tolist()),
        "predicted_twin": mean_posterior(columns["source-only"]),
        "predicted": mean_posterior(adapted) if both else None,
        "target": None if prior is None else named(prior.tolist()),
    }
