"""What ``compare.json`` holds: the cells, their means over the seeds, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from daptkit.assess.scores import SCORES
from daptkit.recipes.cell_choice import combine
from daptkit.recipes.cell_scratch import scratch_cells
from daptkit.recipes.cells import FORMAT, Failure, Plan, cell_name
from daptkit.recipes.evaluating import TRUE_SCORES
from daptkit.train.scratch import SCRATCH

DIVERGENCES = ("proxy_a_distance", "mmd2", "knn_domain_accuracy")
_OF_THE_DATA = ("sha256", "classes", "source_train", "source_val", "target", "patients_known")


def comparison_data(
    plan: Plan,
    measured: Mapping[str, Mapping[str, Any]],
    failures: Sequence[Failure],
    audit: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of ``compare.json``; no path and no image's name is among it.

    Args:
        plan: methods and seeds.
        measured: cell to its measures.
        failures: cells without.
        audit: :func:`daptkit.recipes.cell_audit.audit_cells`; it changes ``audit`` alone.
    """
    failed = {one.cell: one for one in failures}
    places = [(method, seed) for method in plan.methods for seed in plan.seeds]
    cells = [_cell(method, seed, measured, failed) for method, seed in places]
    baseline = scratch_cells(plan.seeds, measured)
    facts: Mapping[str, Any] = next(iter(measured.values()), {})
    return {
        "format": FORMAT,
        "methods": list(plan.methods),
        "seeds": list(plan.seeds),
        "data": {key: facts["data"][key] for key in _OF_THE_DATA} if facts else None,
        "run": facts.get("run"),
        "options": _options(plan, measured),
        "plugins": {k: v for one in measured.values() for k, v in one["plugins"].items()},
        "shift": {
            str(seed): found["shift"]
            for seed in plan.seeds
            for found in [measured.get(cell_name("none", seed))]
            if found
        },
        "choice": combine(plan, measured),
        "cells": cells,
        "summary": {m: _over_seeds([c["values"] for c in _of(cells, m)]) for m in plan.methods},
        "from_scratch": {
            "cells": baseline,
            "summary": _over_seeds([cell["values"] for cell in baseline]),
        }
        if baseline
        else None,
        "audit": None if audit is None else _audit(plan, audit, bool(baseline)),
    }


def label_free_values(found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a cell that are averaged over seeds, by the names of the columns."""
    values: dict[str, float | None] = {
        "source_accuracy": found["source_validation"]["accuracy"],
        "source_balanced_accuracy": found["source_validation"]["balanced_accuracy"],
    }
    for estimate in found["estimates"]:
        values[f"estimate_{estimate['name']}"] = estimate["estimated_accuracy"]["value"]
    # Those of plugins, which not every run need have had, follow daptkit's own.
    scores = dict.fromkeys(SCORES) | found["scores"]
    values |= {f"score_{name}": value for name, value in scores.items()}
    values |= {name: found["divergence"][name] for name in DIVERGENCES}
    # What is left of a continued training is not what one takes.
    values["train_seconds"] = None if found["continued"] else found["train_seconds"]
    return values


def _cell(
    method: str,
    seed: int,
    measured: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, Failure],
) -> dict[str, Any]:
    name = cell_name(method, seed)
    cell: dict[str, Any] = {"method": method, "seed": seed, "name": name}
    if name in failed:
        # What the terminal says may name files, or be the words of a plugin.
        one = failed[name]
        return {
            **cell,
            "status": "failed",
            "reason": one.kind,
            "exit_code": one.exit_code,
            "values": {},
        }
    found = measured[name]
    kept = ("estimates", "vetoes", "collapse", "verdict", "continued")
    return {
        **cell,
        "status": "done",
        "values": label_free_values(found),
        **{key: found[key] for key in kept},
    }


def _of(cells: Sequence[Mapping[str, Any]], method: str) -> list[Mapping[str, Any]]:
    return [cell for cell in cells if cell["method"] == method]


def _over_seeds(rows: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Return mean, standard deviation (n - 1) and number of the seeds that have a value."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [v for row in rows if (v := row.get(name)) is not None]
        found[name] = {
            "mean": float(np.mean(values)) if values else None,
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "n": len(values),
        }
    return found


def _audit(plan: Plan, audit: Mapping[str, Any], baseline: bool) -> dict[str, Any]:
    """Return the true scores by cell, and their means over the seeds."""

    def values(name: str) -> dict[str, float | None]:
        one = audit.get(name)
        if one is None:
            return {}
        gained = one["difference"] or {}
        found = {score: one[score]["value"] for score in TRUE_SCORES}
        return found | {
            f"gained_{score}": gained[score]["value"] for score in TRUE_SCORES if score in gained
        }

    return {
        "cells": dict(audit),
        "summary": {
            m: _over_seeds([values(cell_name(m, seed)) for seed in plan.seeds])
            for m in (*plan.methods, *((SCRATCH,) if baseline else ()))
        },
    }


def _options(plan: Plan, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the options that all cells share, and those of each method."""
    shown: dict[str, Any] = {}
    for cell in plan.cells:
        if cell.name in measured:
            shown |= measured[cell.name]["options"]
    return {key: value for key, value in shown.items() if key not in ("method", "seed")}
