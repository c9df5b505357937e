"""Adapt with several seeds from Python, and compare each run with its own source-only twin.

python examples/03_python_api/compare_seeds.py --source PATH --target PATH --labelled PATH --out DIR

The labelled images are read by ``daptkit.evaluate`` alone, after everything was trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import daptkit
from daptkit.errors import DaptkitError

TWIN, ADAPTED = "source-only", "adapted"


@dataclass(frozen=True)
class Compared:
    """One seed: what the report measured without labels, and what the labels say.

    Args:
        seed: seed of the run.
        distance: proxy A-distance of the sites in each model's features, in [0, 2]; ``None`` where
            there are too few images to measure it.
        validation: balanced accuracy of each model on held-out source images, in [0, 1].
        score: balanced accuracy of each model on the labelled target images, in [0, 1].
        n_target: images that were adapted to.
    """

    seed: int
    distance: dict[str, float | None]
    validation: dict[str, float]
    score: dict[str, float]
    n_target: int

    @property
    def gain(self) -> float:
        """Balanced accuracy after minus before, of models that share data, seed and options."""
        return self.score[ADAPTED] - self.score[TWIN]


def main() -> None:
    """Compare what the command line names, and print one line a seed."""
    options = parse_arguments()
    try:
        runs = [compare(seed, options) for seed in range(options.seeds)]
    except DaptkitError as error:
        raise SystemExit(f"error: {error}") from error
    print_table(runs)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compare runs with their source-only twins.")
    for name in ("source", "target", "labelled", "out"):
        parser.add_argument(f"--{name}", required=True, metavar="PATH")
    parser.add_argument("--method", default="dann+bbse", help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="(%(default)s)")
    parser.add_argument("--epochs", type=int, metavar="N", help="(daptkit's default)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="(%(default)s)")
    return parser.parse_args()


def compare(seed: int, options: argparse.Namespace) -> Compared:
    """Adapt with one seed, predict, and score both models of the run."""
    result = daptkit.adapt(
        source=options.source,
        target=options.target,
        method=options.method,
        model="daptkit_lenet",
        lr=0.03,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=seed,
        out=f"{options.out}/seed_{seed}",
    )
    report = json.loads((result.out / "report.json").read_text(encoding="utf-8"))
    daptkit.predict(result.out, options.target, out=result.out / "again.csv")
    folders = {TWIN: result.out / "twin", ADAPTED: result.out}
    scores = {name: daptkit.evaluate(run, options.labelled) for name, run in folders.items()}
    return Compared(
        seed=seed,
        distance={name: of["proxy_a_distance"] for name, of in report["divergence"].items()},
        validation={name: balanced(of) for name, of in report["source_validation"].items()},
        score={name: balanced(of) for name, of in scores.items()},
        n_target=result.data["data"]["target"],
    )


def balanced(scores: dict[str, Any]) -> float:
    """Return the balanced accuracy among the scores of a model."""
    return float(scores["balanced_accuracy"]["value"])


def shown(of: Mapping[str, float | None]) -> str:
    """Return the numbers of both models, a dash for one that is not known."""
    numbers = [of[name] for name in (TWIN, ADAPTED)]
    return " ".join("    -" if n is None else f"{n:.3f}" for n in numbers)


def print_table(runs: list[Compared]) -> None:
    """Print each seed and, for several, mean and standard deviation of the gain."""
    print(f"{runs[0].n_target} target images; before and after adapting:")
    print("seed  A-distance   source score  target score   gain")
    for run in runs:
        cells = [shown(of) for of in (run.distance, run.validation, run.score)]
        print(f"{run.seed:>4}  {cells[0]:<11}  {cells[1]:<12}  {cells[2]:<12}  {run.gain:+.3f}")
    gains = [run.gain for run in runs]
    if len(gains) > 1:
        print(f"mean gain {mean(gains):+.3f}, standard deviation {stdev(gains):.3f}")


if __name__ == "__main__":
    main()
