"""Compare estimators of the target prior on Gaussians; the default is chosen by this table.

Five classes, the rarest 2%, n images of each domain; the target prior is uniform on the simplex.
The classifier is over-confident and biased, so calibration has work to do. Run it with
``python tests/benchmarks/label_shift.py``; it prints median L1 errors, the coverage of 95%
bootstrap intervals and how often an estimate is trusted. Part of its tables is in the README of
daptkit-bbse.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.shift import PriorEstimate, estimate_prior
from daptkit.shift.bootstrap import bootstrap
from daptkit.shift.calibration import fit_calibration
from daptkit.shift.confusion import predicted_marginal
from daptkit.shift.estimators import em_prior
from daptkit.shift.labelshift import METHODS

FloatArray = npt.NDArray[np.float64]
PRIOR = np.array([0.4, 0.28, 0.2, 0.1, 0.02])
DIMS = 8


@dataclass
class World:
    """Class means, the classifier's bias and a target prior, all drawn from one seed."""

    seed: int
    separation: float
    n: int

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.means = self.rng.normal(size=(len(PRIOR), DIMS)) * self.separation / np.sqrt(DIMS)
        self.bias = 0.5 * self.rng.normal(size=len(PRIOR))
        self.target_prior = self.rng.dirichlet(np.ones(len(PRIOR)))
        self.direction = self.rng.normal(size=DIMS)
        self.direction /= np.linalg.norm(self.direction)

    def draw(
        self, prior: FloatArray, offset: float = 0.0
    ) -> tuple[FloatArray, npt.NDArray[np.int64], FloatArray]:
        """Return logits (n, K), labels (n,) and features (n, D), moved by ``offset``."""
        y = self.rng.choice(len(PRIOR), self.n, p=prior)
        x = self.means[y] + self.rng.normal(size=(self.n, DIMS)) + offset * self.direction
        squares = ((x[:, None] - self.means) ** 2).sum(-1)
        return 2.0 * (np.log(PRIOR) - 0.5 * squares) + self.bias, y, x


def estimate(world: World, offset: float, **options: Any) -> PriorEstimate:
    source, labels, x = world.draw(PRIOR)
    target, _, t = world.draw(world.target_prior, offset)
    options = {"source_prior": PRIOR, "source_features": x, "target_features": t, **options}
    return estimate_prior(source, labels, target, **options)


def error_table(seeds: int) -> None:
    print("| separation | n | " + " | ".join((*METHODS, "counting")) + " |")
    for separation in (2.0, 3.5, 5.0):
        for n in (200, 500, 2000):
            errors: dict[str, list[float]] = {name: [] for name in (*METHODS, "counting")}
            for seed in range(seeds):
                for name in METHODS:
                    world = World(seed, separation, n)
                    found = estimate(world, 0.0, method=name, bootstraps=0).estimate
                    errors[name].append(float(np.abs(found - world.target_prior).sum()))
                world = World(seed, separation, n)
                world.draw(PRIOR)
                counts = np.bincount(world.draw(world.target_prior)[0].argmax(1), minlength=5)
                errors["counting"].append(float(np.abs(counts / n - world.target_prior).sum()))
            cells = " | ".join(f"{np.median(v):.3f}" for v in errors.values())
            print(f"| {separation} | {n} | {cells} |", flush=True)


def coverage_table(seeds: int, replicates: int) -> None:
    print("| separation | n | both sides | both, calibration fixed | target only |")
    for separation in (2.0, 3.5):
        for n in (200, 500, 2000):
            hits: dict[str, list[float]] = {"both": [], "fixed": [], "target": []}
            for seed in range(seeds):
                truth = World(seed, separation, n).target_prior
                found = estimate(World(seed, separation, n), 0.0, bootstraps=replicates)
                inside = (found.low <= truth) & (truth <= found.high)
                hits["both"].append(float(inside.mean()))
                for key, both in (("fixed", True), ("target", False)):
                    low, high = fixed_interval(World(seed, separation, n), replicates, both)
                    hits[key].append(float(((low <= truth) & (truth <= high)).mean()))
            cells = " | ".join(f"{np.mean(v):.2f}" for v in hits.values())
            print(f"| {separation} | {n} | {cells} |", flush=True)


def fixed_interval(world: World, replicates: int, both: bool) -> tuple[FloatArray, FloatArray]:
    """Return EM's interval without refitting the calibration in each replicate."""
    source, labels, _ = world.draw(PRIOR)
    target, *_ = world.draw(world.target_prior)
    calibration = fit_calibration(source, labels)
    posterior = np.exp(calibration.log_posterior(source))
    log_target = calibration.log_posterior(target)

    def again(s: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray]:
        q = em_prior(log_target, predicted_marginal(posterior, s), t)
        return q, q

    rows = np.arange(world.n)
    drawn = bootstrap(again, rows, rows, replicates=replicates, seed=0, resample_source=both)
    return drawn.interval()


def trust_table(seeds: int) -> None:
    print("| separation | n | label shift only | + offset 1.5 | + offset 3 |")
    for separation in (1.0, 2.0, 3.5, 5.0):
        for n in (500, 2000):
            cells = []
            for offset in (0.0, 1.5, 3.0):
                worlds = [World(seed, separation, n) for seed in range(seeds)]
                found = [estimate(w, offset, bootstraps=20) for w in worlds]
                errors = [
                    np.abs(f.estimate - w.target_prior).sum()
                    for f, w in zip(found, worlds, strict=True)
                ]
                share = np.mean([f.trusted for f in found])
                cells.append(f"{share:.2f} (L1 {np.median(errors):.2f})")
            print(f"| {separation} | {n} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--replicates", type=int, default=100)
    options = parser.parse_args()
    error_table(options.seeds)
    coverage_table(options.seeds, options.replicates)
    trust_table(options.seeds)


if __name__ == "__main__":
    main()
