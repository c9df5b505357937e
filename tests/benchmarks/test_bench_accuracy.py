"""How wrong estimates of accuracy without target labels are, and verdicts that rest on them.

``pytest tests/benchmarks/test_bench_accuracy.py -m benchmark -s`` prints the tables; a few minutes.
The worlds are those of ``tests/worlds.py``: three Gaussian classes, 3 images a patient; none: two
samples of one site; label: other class frequencies; covariate: every image moved, whatever its
class; both.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from daptkit.assess.accuracy import estimate_accuracy
from daptkit.assess.accuracy.estimates import estimate_draws
from daptkit.assess.evidence import FAMILIES, paired_differences
from daptkit.assess.verdict import judge
from worlds import KINDS, World

NAMES = ("atc", "atc_entropy", "doc", "prior_weighted_recall", "gde", "aline")
SEEDS, N = 40, 450


def heads_of(world: World, move: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    heads = [world.head(seed) for seed in range(5)]
    target = world.target.x - move * world.moved
    return (
        np.array([h.predict(world.held.x) for h in heads]),
        np.array([h.predict(target) for h in heads]),
    )


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_accuracy_estimates() -> None:
    """Mean absolute error on this target, and how often the interval holds its site's accuracy."""
    print("\n| world | figure | " + " | ".join(NAMES) + " |\n|---|---|" + "---|" * len(NAMES))
    errors: dict[tuple[str, str], list[float]] = {}
    balanced: dict[tuple[str, str], list[float]] = {}
    for kind in KINDS:
        inside: dict[str, list[bool]] = {name: [] for name in NAMES}
        for seed in range(SEEDS):
            world = World(kind, seed, n=N, offset=1.8)
            sample = world.sample()
            on_source, on_target = heads_of(world)
            truth, truth_balanced = world.truth(sample)
            of_heads = float((on_target == world.target.y).mean())
            site = world.population(world.head())
            site_heads = float(np.mean([world.population(world.head(i)) for i in range(5)]))
            for e in estimate_accuracy(
                sample, source_heads=on_source, target_heads=on_target, n_bootstrap=200
            ):
                wanted = of_heads if e.name in ("gde", "aline") else truth
                value, low, high = (e.estimated_accuracy[k] for k in ("value", "low", "high"))
                errors.setdefault((kind, e.name), []).append(abs(value - wanted))
                at_site = site_heads if e.name in ("gde", "aline") else site
                if low is not None:  # the agreement of heads has no interval
                    inside[e.name].append(low <= at_site <= high)
                if e.estimated_balanced_accuracy is not None:
                    error = abs(e.estimated_balanced_accuracy["value"] - truth_balanced)
                    balanced.setdefault((kind, e.name), []).append(error)
        rows = {
            "mean error": {n: np.mean(errors.get((kind, n), [np.nan])) for n in NAMES},
            "made": {n: len(errors.get((kind, n), [])) / SEEDS for n in NAMES},
            "coverage": {n: np.mean(inside[n]) if inside[n] else np.nan for n in NAMES},
            "mean error, balanced": {n: np.mean(balanced.get((kind, n), [np.nan])) for n in NAMES},
        }
        for title, row in rows.items():
            cells = " | ".join(f"{row[n]:.3f}" for n in NAMES)
            print(f"| {kind} | {title} | {cells} |", flush=True)
    mean = {key: float(np.mean(values)) for key, values in errors.items()}
    assert mean["none", "atc"] < 0.03 and mean["none", "doc"] < 0.03
    assert mean["label", "prior_weighted_recall"] < 0.03
    assert mean["label", "prior_weighted_recall"] < mean["label", "doc"]


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_sign_of_paired_differences() -> None:
    """A model that undoes a covariate shift is better; how often do differences say worse?"""
    names = [n for n in FAMILIES if n != "prior_weighted_recall"]
    print("\n| offset | truth | " + " | ".join(f"{n} wrong, right" for n in names) + " |")
    wrong_of: dict[str, list[float]] = {n: [] for n in names}
    for offset in (1.2, 1.8, 2.6):
        gained, signs = [], {n: Counter[str]() for n in names}
        for seed in range(SEEDS):
            world = World("covariate", seed, n=2 * N, offset=offset)
            twin, adapted = world.sample(), world.sample(move=1.0)
            gained.append(world.truth(adapted)[0] - world.truth(twin)[0])
            if gained[-1] < 0.01:
                continue
            draws = [
                estimate_draws(s, target_heads=heads_of(world, move)[1], n_bootstrap=100)
                for s, move in ((twin, 0.0), (adapted, 1.0))
            ]
            changed = float((twin.target_predicted != adapted.target_predicted).mean())
            for name, d in paired_differences(*draws, changed).items():
                if name in names:
                    side = "up" if d["low"] > 0 else "down" if d["high"] < 0 else "flat"
                    signs[name][side] += 1
        better = sum(g >= 0.01 for g in gained)
        cells = [f"{signs[n]['down'] / better:.2f}, {signs[n]['up'] / better:.2f}" for n in names]
        for n in names:
            wrong_of[n].append(signs[n]["down"] / better)
        print(f"| {offset} | +{np.mean(gained):.3f} | " + " | ".join(cells) + " |", flush=True)
    assert np.mean(wrong_of["gde"]) < 0.5 * np.mean(wrong_of["doc"])


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_verdicts() -> None:
    """Verdicts on pairs whose truth is known; a wrong "helped" is the fault to avoid."""
    verdicts = ("helped", "no evidence", "hurt", "can't know")
    print("\n| pair | truth | " + " | ".join(verdicts) + " |\n|---|---|" + "---|" * 4)
    table: dict[str, Counter[str]] = {}
    for pair in ("undone", "overdone", "swapped", "sharpened", "collapsed", "swapped, blind twin"):
        found, gained = Counter[str](), []
        for seed in range(SEEDS):
            world = World("covariate", seed, n=2 * N, offset=2.2)
            verdict, gain = judged(world, pair)
            found[verdict] += 1
            gained.append(gain)
        table[pair] = found
        cells = " | ".join(f"{found[v] / SEEDS:.2f}" for v in verdicts)
        print(f"| {pair} | {np.mean(gained):+.3f} | {cells} |", flush=True)
    assert table["undone"]["hurt"] <= 0.1 * SEEDS
    for pair in ("swapped", "collapsed"):
        assert table[pair]["hurt"] == SEEDS
    for pair in ("overdone", "sharpened", "swapped, blind twin"):
        assert table[pair]["helped"] <= 0.1 * SEEDS, pair


def judged(world: World, pair: str) -> tuple[str, float]:
    """Return the verdict on one pair and the true gain of accuracy."""
    twin = world.sample()
    move = {"undone": 1.0, "overdone": -0.7}.get(pair, 0.0)
    adapted = world.sample(move=move)
    before, after = heads_of(world)[1], heads_of(world, move)[1]
    target = adapted.target_posterior.copy()
    if pair.startswith("swapped"):
        target, after = target[:, [1, 0, 2]], np.array([1, 0, 2])[after]
    if pair == "sharpened":
        target = target**6 / (target**6).sum(axis=1, keepdims=True)
    if pair == "collapsed":
        target, after = np.full_like(target, 0.01), after * 0
        target[:, 0] = 0.98
    gap = 0.0
    if pair == "swapped, blind twin":
        order = np.random.default_rng(0).permutation(len(target))
        twin, before, gap = with_target(twin, twin.target_posterior[order]), before[:, order], 1.3
    adapted = with_target(adapted, target)
    found = judge(
        twin,
        adapted,
        kind="covariate",
        twin_heads=before,
        adapted_heads=after,
        feature_gap=gap,
        n_bootstrap=100,
    )
    return found.verdict, world.truth(adapted)[0] - world.truth(twin)[0]


def with_target(sample, posterior):
    from dataclasses import replace

    return replace(sample, target_posterior=posterior, target_shared=posterior)
