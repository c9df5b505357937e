"""Two sites whose shift is known, several images of each patient, as features and logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression

from daptkit.shift import ShiftDiagnosis, diagnose_shift
from daptkit.shift.questions import Answers, Images, three_questions

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WORLDS = ("none", "label", "covariate", "both")
PRIOR, SHIFTED = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
DIMS = 16
MEANS = np.zeros((3, DIMS))
MEANS[0, 0] = MEANS[1, 1] = 2.5
MEANS[2, :2] = -1.75


@dataclass(frozen=True)
class Site:
    x: Floats  # (N, D)
    logits: Floats  # (N, K)
    y: Ints  # (N,)
    groups: Ints  # (N,)


def gaussian_site(
    rng: np.random.Generator,
    patients: int,
    prior: Floats = PRIOR,
    offset: float = 0.0,
    images: tuple[int, int] = (1, 6),
    within: float = 0.5,
) -> Site:
    """Gaussian classes; images of a patient share a label and a share ``within`` of the variance.

    The offset moves two directions in which classes do not differ.
    """
    y = rng.choice(3, patients, p=prior)
    groups = np.repeat(np.arange(patients), rng.integers(images[0], images[1] + 1, patients))
    own = MEANS[y] + np.sqrt(within) * rng.normal(size=(patients, DIMS))
    x = own[groups] + np.sqrt(1.0 - within) * rng.normal(size=(len(groups), DIMS))
    x[:, 2:4] += offset
    return Site(x, gaussian_logits(x), y[groups], groups)


def gaussian_logits(x: Floats) -> Floats:
    return -0.5 * ((x[:, None] - MEANS) ** 2).sum(-1) + np.log(PRIOR)


def gaussian_pair(world: str, seed: int, patients: int = 100) -> tuple[Site, Site]:
    """Return source and target; 1 to 6 images of each patient."""
    rng = np.random.default_rng(seed)
    prior = SHIFTED if world in ("label", "both") else PRIOR
    offset = 0.6 if world in ("covariate", "both") else 0.0
    return gaussian_site(rng, patients), gaussian_site(rng, patients, prior, offset)


def moved_pair(world: str, seed: int, patients: int = 100) -> tuple[Site, Site]:
    """As :func:`gaussian_pair`, but the appearance moves images from one class to another."""
    rng = np.random.default_rng(seed)
    prior = SHIFTED if world in ("label", "both") else PRIOR
    source, target = gaussian_site(rng, patients), gaussian_site(rng, patients, prior)
    if world in ("label", "none"):
        return source, target
    x = target.x + np.array([1.5, -0.75] + [0.0] * (DIMS - 2))
    return source, Site(x, gaussian_logits(x), target.y, target.groups)


class Digits:
    """USPS digits as patients of three images of one digit, with a gain of the patient's own."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "digits" / "usps.npz") as archive:
            images = archive["train_images"].astype(np.float64) / 255.0
            labels = archive["train_labels"].reshape(-1).astype(np.int64)
        order = np.random.default_rng(0).permutation(len(labels))
        images, labels = images[order].reshape(len(labels), 16, 16), labels[order]
        self.model = LogisticRegression(C=0.01, max_iter=500)
        self.model.fit(images[:2000].reshape(2000, -1), labels[:2000])
        self.images, self.labels = images[2000:], labels[2000:]

    def pair(self, world: str, seed: int, patients: int = 200) -> tuple[Site, Site]:
        """Return two sites that share no image: the target softer, or with half the digits rare.

        All images are drawn once, without repetition: halves of a small archive would differ.
        """
        rng = np.random.default_rng(seed)
        rare = np.where(np.arange(10) < 5, 1.0, 0.3)
        prior = rare / rare.sum() if world in ("label", "both") else np.full(10, 0.1)
        soft = world in ("covariate", "both")
        pools = [rng.permutation(np.flatnonzero(self.labels == k)).tolist() for k in range(10)]
        return (
            self._site(rng, pools, patients, np.full(10, 0.1), False),
            self._site(rng, pools, patients, prior, soft),
        )

    def _site(
        self,
        rng: np.random.Generator,
        pools: list[list[int]],
        patients: int,
        prior: Floats,
        soft: bool,
    ) -> Site:
        y = rng.choice(10, patients, p=prior)
        drawn = np.array([pools[k].pop() for k in y for _ in range(3)])
        groups = np.repeat(np.arange(patients), 3)
        images = self.images[drawn] * rng.uniform(0.8, 1.0, patients)[groups, None, None]
        if soft:
            images = gaussian_filter(images, (0, 0.6, 0.6))
        x = images.reshape(len(images), -1)
        return Site(x, self.model.predict_log_proba(x), self.labels[drawn], groups)


def diagnosed(source: Site, target: Site, **options: object) -> ShiftDiagnosis:
    return diagnose_shift(
        source.x,
        source.logits,
        source.y,
        target.x,
        target.logits,
        source_groups=source.groups,
        target_groups=target.groups,
        **options,
    )


def answered(source: Site, target: Site, seed: int, permutations: int = 999) -> Answers:
    """The tests of a diagnosis without its effect sizes, which take most of the time."""
    domains = [Images(features=v.x, logits=v.logits, groups=v.groups) for v in (source, target)]
    return three_questions(
        domains[0], source.y, domains[1], alpha=0.05, permutations=permutations, seed=seed
    )
