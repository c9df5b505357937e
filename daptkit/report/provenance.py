"""What a report says of a run before any score: method, options, data and classes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from daptkit.config import AdaptConfig
from daptkit.host import load_methods, parse_method
from daptkit.train.adaptation import Trained
from daptkit.train.domains import Domain, Rows
from daptkit.train.hiding import without_path

_LEFT_OUT = frozenset(
    {"source", "target", "out", "pretrained_path", "init_from", "cache", "resume", "method_options"}
)


def run_facts(trained: Trained) -> dict[str, Any]:
    """Return what ran; no path is among it."""
    config, record = trained.config, trained.record
    weights = record["model"]["weights"]
    return {
        "method": record["method"],
        "methods": _methods(config, record["plugins"]),
        "seed": record["seed"],
        "device": record["device"],
        "model": record["model"]["name"],
        "weights": None if weights is None else weights["sha256"],
        "finetune": config.finetune,
        "augmentation": record["augmentation"],
        "versions": record["versions"],
        "timings": record["timings"],
        "options": options_shown(config),
        "twin": record["twin"],
    }


def options_shown(config: AdaptConfig) -> dict[str, Any]:
    """Return every resolved option but paths; those of methods as ``"dann.weight"``."""
    names = [f.name for f in dataclasses.fields(config) if f.name not in _LEFT_OUT]
    shown = {name: getattr(config, name) for name in names}
    # Values of a model's, a reader's or a method's own options may be files.
    shown["model"] = without_path("", config.model)
    for name in ("model_kwargs", "reader_options"):
        shown[name] = [_pair_without_path(text) for text in getattr(config, name)]
    for method, options in config.method_options.items():
        shown |= {f"{method}.{name}": without_path(name, v) for name, v in options.items()}
    return shown


def _pair_without_path(text: str) -> str:
    key, equals, value = text.partition("=")
    return f"{key}={without_path(key, value)}" if equals else str(without_path("", text))


def data_facts(trained: Trained) -> dict[str, Any]:
    """Return sizes, classes, patients, sites and fingerprints of both domains."""
    data, record = trained.prepared.data, trained.record["data"]
    source_rows = np.concatenate([data.train_rows, data.val_rows])
    labels = data.source.labels
    assert labels is not None
    counts = np.bincount(labels[data.train_rows], minlength=data.task.num_classes)
    sites = sites_of(data.source, source_rows)
    return {
        "classes": list(data.task.classes),
        "source_train": len(data.train_rows),
        "source_val": len(data.val_rows),
        "target": len(data.target_rows),
        "patients_known": record["patients_known"],
        "patients": {
            "source": _patients(data.source, source_rows),
            "target": _patients(data.target, data.target_rows),
        },
        "skipped_unreadable": record["skipped_unreadable"],
        "sha256": record["sha256"],
        "source_counts": dict(zip(data.task.classes, counts.tolist(), strict=True)),
        "sites": dict(sorted(Counter(sites or ()).items())),
    }


def sites_of(domain: Domain, rows: Rows) -> list[str] | None:
    """Return the site of each row; ``None`` where some image names none."""
    sites: Sequence[str] | None = domain.images.table.sites
    if sites is None:
        return None
    found = [sites[row] for row in rows.tolist()]
    return found if all(found) else None


def _patients(domain: Domain, rows: Rows) -> int | None:
    if not domain.images.table.patients_known:
        return None
    return len(np.unique(domain.groups[rows]))


def _methods(config: AdaptConfig, plugins: dict[str, Any]) -> dict[str, Any]:
    return {
        loaded.spec.name: {
            **plugins[loaded.spec.name],
            "summary": loaded.spec.summary,
            "reference": loaded.spec.reference,
        }
        for loaded in load_methods(parse_method(config.method))
    }
