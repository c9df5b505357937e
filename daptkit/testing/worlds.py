"""Two domains whose truth is known: Gaussian classes, moved or in other proportions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from daptkit.method import TaskInfo
from daptkit.testing.made import make_task

SHIFTS = ("none", "move", "stretch", "label")
_DISTANCE = 3.0
_MOVE = 1.5
_STRETCH = 2.0
_RARE = (0.7, 0.2, 0.1)


@dataclass(frozen=True, kw_only=True)
class KnownShift:
    """N source and M target images of K classes, as features of D numbers.

    Args:
        kind: one of :data:`SHIFTS`.
        source_features: (N, D).
        source_labels: (N,) classes.
        target_features: (M, D).
        target_labels: (M,) classes, to score with and never to learn from.
        target_prior: (K,) true frequencies that the target was drawn with; the source's are equal.
        centres: (K, D) mean of each class at the source.
    """

    kind: str
    source_features: Tensor
    source_labels: Tensor
    target_features: Tensor
    target_labels: Tensor
    target_prior: Tensor
    centres: Tensor

    @property
    def task(self) -> TaskInfo:
        """What a method is told of it."""
        made = make_task(*self.centres.shape)
        sizes = {"n_source": len(self.source_labels), "n_target": len(self.target_labels)}
        return TaskInfo(
            classes=made.classes, dims=made.dims, source_prior=made.source_prior, **sizes
        )

    def logits(self, features: Tensor) -> Tensor:
        """Return the best logits at the source, (N, K): log p(x | y) up to a constant."""
        centres = self.centres.to(features)
        return features @ centres.T - 0.5 * centres.square().sum(1)

    def accuracy(self, features: Tensor) -> float:
        """Return how many of the target's images the source's best classifier tells right.

        Args:
            features: (M, D), the target's, aligned or as they were.
        """
        right = self.logits(features).argmax(1).cpu() == self.target_labels
        return float(right.float().mean())

    def gap(self, features: Tensor) -> float:
        """Return the distance of the domains, 0 where features are distributed alike.

        ||m_s - m_t||^2 + ||s_s - s_t||^2 of means and standard deviations, over the variance of
        the source's features.

        Args:
            features: (M, D), the target's, aligned or as they were.
        """
        source, target = self.source_features.double(), features.detach().cpu().double()
        means = (source.mean(0) - target.mean(0)).square().sum()
        spreads = (source.std(0) - target.std(0)).square().sum()
        return float((means + spreads) / source.var(0).mean())


def known_shift(kind: str, n: int = 64, m: int = 48, *, seed: int = 0) -> KnownShift:
    """Draw two domains of three classes.

    Args:
        kind: ``"none"``; ``"move"``: the target's features are moved, so that some errors are
            made; ``"stretch"``: they are further from their mean; ``"label"``: the target's
            classes have other frequencies. In the first three they are as frequent as the source's.
        n: source images.
        m: target images.
        seed: of the draws.
    """
    if kind not in SHIFTS:
        raise ValueError(f"unknown shift '{kind}'; known: {', '.join(SHIFTS)}")
    classes, size = 3, 6
    generator = torch.Generator().manual_seed(seed)
    centres = _DISTANCE * torch.eye(size)[:classes]
    prior = torch.tensor(_RARE if kind == "label" else (1 / 3, 1 / 3, 1 / 3))

    def draw(count: int, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        # As many of each class as its frequency says, so that the truth is not one more draw.
        ends = (frequencies.cumsum(0) * count).round().long()
        labels = torch.bucketize(torch.arange(count), ends, right=True).clamp(max=classes - 1)
        labels = labels[torch.randperm(count, generator=generator)]
        noise = torch.randn(count, size, generator=generator)
        return centres[labels] + noise, labels

    source, source_labels = draw(n, torch.full((classes,), 1 / classes))
    target, target_labels = draw(m, prior)
    if kind == "move":
        move = torch.full((size,), _MOVE)
        move[0] = -_MOVE
        target = target + move
    if kind == "stretch":
        target = target.mean(0) + _STRETCH * (target - target.mean(0))
    return KnownShift(
        kind=kind,
        source_features=source,
        source_labels=source_labels,
        target_features=target,
        target_labels=target_labels,
        target_prior=prior,
        centres=centres,
    )
