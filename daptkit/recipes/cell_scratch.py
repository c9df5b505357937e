"""The network from random weights beside the methods of a comparison: a baseline, not a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from daptkit.assess.summary import collapse_check
from daptkit.recipes.cell_measures import SeedShift, estimates_of
from daptkit.recipes.cells import SOURCE_ONLY, cell_name
from daptkit.train.adaptation import Trained
from daptkit.train.scratch import SCRATCH


def measure_scratch(trained: Trained, shift: SeedShift) -> dict[str, Any] | None:
    """Return what a comparison shows of it, from the source-only run of a seed; else ``None``.

    Args:
        trained: the run, its models in memory.
        shift: of its seed.
    """
    if trained.scratch is None or trained.adapted is not None:
        return None
    model, data = trained.scratch, trained.prepared.data
    predicted = model.rule.predict(model.passes.target_logits[data.target_rows])
    return {
        "source_validation": trained.record["figures"]["source_validation"][SCRATCH],
        "estimates": estimates_of(trained, model, shift),
        "collapse": collapse_check(predicted, trained.prepared.classes).to_json(),
    }


def scratch_cells(
    seeds: Sequence[int], measured: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a row for each seed that has one, as ``compare.json`` holds those of the runs.

    Args:
        seeds: of the comparison.
        measured: cell to its measures.
    """
    cells = []
    for seed in seeds:
        found = measured.get(cell_name(SOURCE_ONLY, seed), {}).get("from_scratch")
        if found is None:
            continue
        values = {f"source_{name}": value for name, value in found["source_validation"].items()}
        for estimate in found["estimates"]:
            values[f"estimate_{estimate['name']}"] = estimate["estimated_accuracy"]["value"]
        cells.append(
            {
                "method": SCRATCH,
                "seed": seed,
                "name": cell_name(SCRATCH, seed),
                "status": "done",
                "values": values,
                "estimates": found["estimates"],
                "vetoes": [],
                "collapse": found["collapse"],
                "verdict": None,
            }
        )
    return cells
