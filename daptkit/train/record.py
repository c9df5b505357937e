"""What ``run.json`` holds: where a run comes from, and its figures."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch

import daptkit
from daptkit.assess.paired import lost_balanced_accuracy
from daptkit.assess.summary import collapse_check, validation_score
from daptkit.config import AdaptConfig
from daptkit.host import LoadedMethod
from daptkit.shift import divergences
from daptkit.train.deliver import Delivered
from daptkit.train.device import Precision
from daptkit.train.prepare import Prepared
from daptkit.train.scratch import SCRATCH


def model_meta(loaded: Sequence[LoadedMethod], prepared: Prepared) -> dict[str, Any]:
    """Return the provenance that ``model.json`` holds."""
    weights = prepared.network.weights
    return {
        "methods": {m.spec.name: f"{m.package} {m.version}" for m in loaded},
        "pretrained": None if weights is None else {"sha256": weights.sha256},
        "data": prepared.fingerprints,
    }


def provenance(
    loaded: Sequence[LoadedMethod],
    prepared: Prepared,
    config: AdaptConfig,
    precision: Precision,
    processes: int,
) -> dict[str, Any]:
    """Return versions, plugins, seed, devices, model and data of a run; no path and no id."""
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
        "processes": processes,
        "model": {
            "name": prepared.model_config.name,
            "package": prepared.network.package,
            "weights": model_meta(loaded, prepared)["pretrained"],
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
            "patient_overlap_allowed": dict(prepared.overlaps),
            "skipped_unreadable": len(prepared.skipped),
            "trunk_features_from_cache": prepared.cache_hits,
        },
    }


def run_figures(
    config: AdaptConfig,
    prepared: Prepared,
    twin: Delivered,
    adapted: Delivered | None,
    scratch: Delivered | None = None,
) -> dict[str, Any]:
    """Return the figures of the closing summary; none of them needs a target label.

    Args:
        config: options.
        prepared: data of the run.
        twin: the source-only model.
        adapted: the model of the methods; ``None`` in a source-only run.
        scratch: the same network from random weights, where it was asked for.
    """
    data, final = prepared.data, adapted or twin
    columns = {"source-only": twin, **({"adapted": adapted} if adapted else {})}
    predicted = final.rule.predict(final.passes.target_logits[data.target_rows])
    return {
        "method": config.method,
        "n_target": len(data.target_rows),
        "source_validation": {
            name: _source_validation(prepared, model)
            for name, model in {**({SCRATCH: scratch} if scratch else {}), **columns}.items()
        },
        "calibration": {
            name: model.choice and model.choice.to_json() for name, model in columns.items()
        },
        "forgotten": None if adapted is None else _forgotten(config, prepared, twin, adapted),
        "divergence": {
            name: _divergence(prepared, model, config.seed) for name, model in columns.items()
        },
        "prior": _priors(prepared, twin, adapted, scratch),
        "selection": None if final.fit.choice is None else final.fit.choice.to_json(),
        "prior_interval": "patient" if _patients_known(prepared) else "image",
        "collapse": collapse_check(predicted, prepared.classes).to_json(),
        "notes": list(final.fit.notes),
    }


def _patients_known(prepared: Prepared) -> bool:
    data = prepared.data
    return all(domain.images.table.patients_known for domain in (data.source, data.target))


def _source_validation(prepared: Prepared, model: Delivered) -> dict[str, float]:
    labels = prepared.data.source.labels
    assert labels is not None
    predicted = model.rule.predict(model.passes.val_logits, "source")
    return dict(vars(validation_score(predicted, labels[prepared.data.val_rows])))


def _forgotten(
    config: AdaptConfig, prepared: Prepared, twin: Delivered, adapted: Delivered
) -> dict[str, Any]:
    """Return what adapting cost on the held-out source images, by the rule that scores them."""
    source, rows = prepared.data.source, prepared.data.val_rows
    assert source.labels is not None
    before, after = (
        model.rule.predict(model.passes.val_logits, "source", "balanced")
        for model in (twin, adapted)
    )
    return lost_balanced_accuracy(
        source.labels[rows],
        before,
        after,
        groups=source.groups[rows],
        patients_known=source.images.table.patients_known,
        seed=config.seed,
    )


def _divergence(prepared: Prepared, model: Delivered, seed: int) -> dict[str, float]:
    data, passes = prepared.data, model.passes
    return divergences(
        passes.source_features,
        passes.target_features[data.target_rows],
        source_groups=data.source.groups[passes.source_rows],
        target_groups=data.target.groups[data.target_rows],
        seed=seed,
    )


def _priors(
    prepared: Prepared, twin: Delivered, adapted: Delivered | None, scratch: Delivered | None
) -> dict[str, Mapping[str, float] | None]:
    def named(values: Any) -> dict[str, float]:
        return {c: float(v) for c, v in zip(prepared.classes, values, strict=True)}

    def mean_posterior(model: Delivered) -> dict[str, float]:
        logits = model.passes.target_logits[prepared.data.target_rows]
        return named(model.rule.posterior(logits).mean(axis=0))

    prior = adapted.fit.target_prior if adapted else None
    interval = adapted.fit.target_prior_interval if adapted else None
    low, high = interval if prior is not None and interval is not None else (None, None)
    return {
        "source": named(prepared.data.task.source_prior.tolist()),
        **({"predicted_scratch": mean_posterior(scratch)} if scratch else {}),
        "predicted_twin": mean_posterior(twin),
        "predicted": mean_posterior(adapted) if adapted else None,
        "target": None if prior is None else named(prior.tolist()),
        "target_low": None if low is None else named(low.tolist()),
        "target_high": None if high is None else named(high.tolist()),
    }
