"""What choosing without target labels costs against an oracle, and against the last checkpoint.

``pytest tests/benchmarks/test_bench_selection.py -m benchmark -s`` prints the table; a few minutes.
Each run has 6 simulated checkpoints of a method that first undoes the sites' shift and then, in
half of the runs, goes wrong: overshoots, collapses to one class, splits the target evenly or swaps
two names, growing surer all the while. Posteriors are calibrated on the source, as those of a run.
"""

from __future__ import annotations

import numpy as np
import pytest

from daptkit.assess.scores import SCORES, ScoreInputs, score_inputs, select
from daptkit.shift import estimate_prior, fit_calibration
from worlds import KINDS, World, log_posterior

SEEDS, N, STEPS = 5, 300, 6
FATES = ("well", "overshoots", "collapses", "splits evenly", "swaps")


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def run(
    kind: str, fate: str, seed: int
) -> tuple[list[ScoreInputs], list[float], dict[str, np.ndarray]]:
    """Return the checkpoints of a run, the source-only one first, and their target accuracy.

    Last the interval of the target's prior by the source-only model, empty where not trusted.
    """
    world = World(kind, seed, n=N, offset=2.2)
    head = world.head()
    made, truth = [], []
    prior = estimate_prior(
        log_posterior(head, world.held.x),
        world.held.y,
        log_posterior(head, world.target.x),
        source_groups=world.held.groups,
        target_groups=world.target.groups,
        source_features=world.held.x,
        target_features=world.target.x,
        bootstraps=40,
    )
    known = {"prior_low": prior.low, "prior_high": prior.high} if prior.trusted else {}
    for step in range(STEPS):
        p = step / (STEPS - 1)
        good = min(2.0 * p, 1.0)  # done halfway
        bad = 0.0 if fate == "well" else max(2.0 * p - 1.0, 0.0)
        move = good + (2.0 * bad if fate == "overshoots" else 0.0)
        x = world.target.x - move * world.moved
        z = (1.0 + 2.0 * p) * log_posterior(head, x)
        if fate == "collapses":
            z[:, 0] += 25.0 * bad
        if fate == "splits evenly":
            for _ in range(20):  # scale columns until every class is equally frequent
                z -= bad * np.log(3.0 * softmax(z).mean(axis=0))
        if fate == "swaps":
            z = np.where(bad > 0.3, z[:, [1, 0, 2]], z)
        at_source = (1.0 + 2.0 * p) * log_posterior(head, world.held.x)
        calibration = fit_calibration(at_source, world.held.y)
        target = np.exp(calibration.log_posterior(z))
        made.append(
            score_inputs(
                target,
                np.exp(calibration.log_posterior(at_source)),
                world.held.y,
                source_groups=world.held.groups,
                target_groups=world.target.groups,
                source_features=world.held.x,
                target_features=x,
                target_prior=prior.prior,
            )
        )
        truth.append(float((target.argmax(axis=1) == world.target.y).mean()))
    return made, truth, known


def best(made: list[ScoreInputs], name: str) -> int:
    function, higher = SCORES[name]
    values = np.array([function(inputs) for inputs in made])
    return int(np.nanargmax(values if higher else -values))


@pytest.mark.benchmark
@pytest.mark.timeout(3600)
def test_loss_of_the_choice_without_labels() -> None:
    rules = ("select", "last", "first", *SCORES)
    print("\n| world | fate | oracle | " + " | ".join(f"{r} loses" for r in rules) + " |")
    print("|---|---|---|" + "---|" * len(rules))
    everything: dict[str, list[float]] = {rule: [] for rule in rules}
    for kind in KINDS:
        for fate in FATES:
            lost: dict[str, list[float]] = {rule: [] for rule in rules}
            oracle = []
            for seed in range(SEEDS):
                made, truth, known = run(kind, fate, seed)
                names = {str(i): inputs for i, inputs in enumerate(made)}
                chosen = select(names, made[0], kind=kind, **known).chosen
                picks = {"select": int(chosen or 0), "last": STEPS - 1, "first": 0}
                picks |= {name: best(made, name) for name in SCORES}
                oracle.append(max(truth))
                for rule, at in picks.items():
                    lost[rule].append(max(truth) - truth[at])
            cells = " | ".join(f"{np.mean(lost[r]):.3f}" for r in rules)
            print(f"| {kind} | {fate} | {np.mean(oracle):.3f} | {cells} |", flush=True)
            for rule in rules:
                everything[rule] += lost[rule]
    cells = " | ".join(f"{np.mean(everything[r]):.3f} ({max(everything[r]):.2f})" for r in rules)
    print(f"| all | mean (worst) | | {cells} |")
    assert np.mean(everything["select"]) < np.mean(everything["last"])
    for name in SCORES:
        assert np.mean(everything["select"]) < np.mean(everything[name]) + 0.005, name
