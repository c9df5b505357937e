"""Which method a comparison recommends: label-free scores, combined within and over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from daptkit.assess.scores import choose, score_weights
from daptkit.recipes.cells import Plan, cell_name

Measures = Mapping[str, Any]


def combine(plan: Plan, measured: Mapping[str, Measures]) -> dict[str, Any]:
    """Return the combined rank of every method and the one that is recommended.

    The methods of one seed share splits and source-only model, so they are ranked with each other:
    :func:`daptkit.assess.scores.choose`. A method's rank is the mean of its places over the seeds,
    1 the best; equal means are decided by the balanced accuracy on held-out source images, then by
    the order of the methods, the source-only model first. A method that was vetoed or did not
    finish in any of the seeds has no rank.

    Args:
        plan: methods and seeds.
        measured: cell to its measures, of finished cells.

    Returns:
        ``recommended`` (``None`` where every method was vetoed or failed), ``order``, ``rank`` by
        method, ``vetoes`` by method, ``seeds``: the selection within each, and
        ``raise_confidence``: methods whose loss raises confidence on the target, for which scores
        of the target's predictions do not count.
    """
    seeds = {str(seed): _of_seed(plan.methods, seed, measured) for seed in plan.seeds}
    cells = {m: [cell_name(m, seed) for seed in plan.seeds] for m in plan.methods}
    vetoes: dict[str, list[str]] = {
        method: _vetoes(plan.seeds, [measured.get(name) for name in names])
        for method, names in cells.items()
    }
    ranked = [
        method
        for method, names in cells.items()
        if not vetoes[method] and all(name in measured for name in names)
    ]
    rank = {
        method: float(np.mean([seed["order"].index(method) + 1 for seed in seeds.values()]))
        for method in ranked
    }
    source = {
        method: float(np.mean([measured[name]["source_accuracy"] for name in cells[method]]))
        for method in ranked
    }
    # Sorting is stable: what is left undecided keeps the order of the methods.
    order = sorted(ranked, key=lambda method: (rank[method], -source[method]))
    return {
        "recommended": order[0] if order else None,
        "order": order,
        "rank": rank,
        "vetoes": {method: reasons for method, reasons in vetoes.items() if reasons},
        "seeds": seeds,
        "raise_confidence": [
            method
            for method, names in cells.items()
            if any(_raises_confidence(measured[name]) for name in names if name in measured)
        ],
    }


def _of_seed(methods: Sequence[str], seed: int, measured: Mapping[str, Measures]) -> dict[str, Any]:
    found = {m: measured[cell_name(m, seed)] for m in methods if cell_name(m, seed) in measured}
    shift = next((one["shift"] for one in found.values()), {"kind": None, "prior": None})
    scores = {
        method: {n: np.nan if v is None else v for n, v in one["scores"].items()}
        for method, one in found.items()
    }
    return choose(
        scores,
        {method: one["vetoes"] for method, one in found.items()},
        {method: one["source_accuracy"] for method, one in found.items()},
        score_weights(
            shift["kind"],
            shift["prior"] is not None,
            any(_raises_confidence(one) for one in found.values() if not one["vetoes"]),
        ),
    ).to_json()


def _raises_confidence(one: Measures) -> bool:
    return bool(one.get("raises_confidence", False))  # earlier versions did not measure it


def _vetoes(seeds: Sequence[int], cells: Sequence[Measures | None]) -> list[str]:
    return [
        f"seed {seed}: {reason}"
        for seed, one in zip(seeds, cells, strict=True)
        for reason in (one or {"vetoes": ()})["vetoes"]
    ]
