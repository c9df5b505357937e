"""Two simulated sites whose truth is known, for estimates that must do without target labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from daptkit.assess.accuracy import Sample, sample_of
from daptkit.shift import fit_calibration

KINDS = ("none", "label", "covariate", "both")
SOURCE_PRIOR = np.array([0.5, 0.3, 0.2])
TARGET_PRIOR = np.array([0.1, 0.2, 0.7])
DIMS = 6


@dataclass
class Site:
    x: np.ndarray  # (N, D)
    y: np.ndarray  # (N,)
    groups: np.ndarray  # (N,)


class World:
    """Three Gaussian classes; patients give 3 images each and differ a little."""

    def __init__(self, kind: str, seed: int, n: int = 400, offset: float = 1.2) -> None:
        self.rng = np.random.default_rng(seed)
        self.kind = kind
        self.means = self.rng.normal(size=(3, DIMS))
        self.means *= 2.2 / np.linalg.norm(self.means, axis=1, keepdims=True)
        direction = self.rng.normal(size=DIMS)
        self.shift = offset * direction / np.linalg.norm(direction)
        self.train, self.held = self.site(SOURCE_PRIOR, n), self.site(SOURCE_PRIOR, n)
        prior = TARGET_PRIOR if kind in ("label", "both") else SOURCE_PRIOR
        moved = self.shift if kind in ("covariate", "both") else 0.0
        self.target = self.site(prior, n)
        self.target.x = self.target.x + moved
        self.prior = prior
        self.moved = moved

    def site(self, prior: np.ndarray, n: int) -> Site:
        groups = np.arange(n) // 3
        y = self.rng.choice(3, n, p=prior)
        patient = 0.3 * self.rng.normal(size=(groups.max() + 1, DIMS))
        return Site(self.means[y] + patient[groups] + self.rng.normal(size=(n, DIMS)), y, groups)

    def head(self, seed: int | None = None) -> LogisticRegression:
        """Return a head trained on the source, on a resample of it where ``seed`` is given."""
        rows = np.arange(len(self.train.y))
        if seed is not None:
            rows = np.random.default_rng(seed).integers(len(rows), size=len(rows) // 2)
        return LogisticRegression(C=1.0, max_iter=200).fit(self.train.x[rows], self.train.y[rows])

    def sample(self, head: LogisticRegression | None = None, move: float = 0.0) -> Sample:
        """Return a calibrated head's evidence; ``move`` undoes that share of the sites' shift."""
        head = self.head() if head is None else head
        source = log_posterior(head, self.held.x)
        target = log_posterior(head, self.target.x - move * self.moved)
        calibration = fit_calibration(source, self.held.y)
        return sample_of(
            np.exp(calibration.log_posterior(source)),
            self.held.y,
            np.exp(calibration.log_posterior(target)),
            source_groups=self.held.groups,
            target_groups=self.target.groups,
        )

    def truth(self, sample: Sample) -> tuple[float, float]:
        """Return accuracy and balanced accuracy on the target."""
        right = sample.target_predicted == self.target.y
        recalls = [right[self.target.y == k].mean() for k in np.unique(self.target.y)]
        return float(right.mean()), float(np.mean(recalls))

    def population(self, head: LogisticRegression) -> float:
        """Return a head's accuracy on 30,000 further images of the target site."""
        more = self.site(self.prior, 30_000)
        return float((head.predict(more.x + self.moved) == more.y).mean())


def log_posterior(head: LogisticRegression, x: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(head.predict_proba(x), 1e-12))
