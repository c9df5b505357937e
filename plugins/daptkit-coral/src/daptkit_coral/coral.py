"""Correlation alignment, Deep CORAL (arXiv:1607.01719)."""

from __future__ import annotations

from torch import Tensor

from daptkit.method import DomainBatch, Method, StepContext
from daptkit.nn import covariance_distance, mean_distance, ramp
from daptkit_coral.plugin import CORALOptions


def coral_loss(
    source: Tensor,
    target: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Return the distance of second-order statistics of two domains.

    ||C_s - C_t||_F^2 / (4 D^2), C the unbiased weighted covariances; 0 where one is undefined
    (weights that sum to 1 or less).  Paper: arXiv:1607.01719, equation 1.

    Args:
        source: (N, D).
        target: (M, D).
        source_weights: (N,), at least 0, ones if not given.
        target_weights: (M,), at least 0, ones if not given.
    """
    distance = covariance_distance(source, target, source_weights, target_weights)
    return distance / (4 * source.shape[1] ** 2)


def mean_loss(
    source: Tensor,
    target: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Return the distance of first-order statistics of two domains.

    ||m_s - m_t||^2 / D, m the weighted means; 0 where a domain's weights sum to 0.

    Args:
        source: (N, D).
        target: (M, D).
        source_weights: (N,), at least 0, ones if not given.
        target_weights: (M,), at least 0, ones if not given.
    """
    return mean_distance(source, target, source_weights, target_weights) / source.shape[1]


class CORAL(Method):
    """Learn features with the same mean and covariance in both domains.

    Args:
        options: see :class:`daptkit_coral.plugin.CORALOptions`.
        task: not used.
    """

    options: CORALOptions

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return ``{"covariance": loss, "mean": loss}``; a term of weight 0 is left out."""
        assert source is not None, "the specification needs a source"
        factor = ramp(ctx.progress) if self.options.ramp else 1.0
        domains = (
            ctx.gather(source.features),
            ctx.gather(target.features),
            ctx.gather(source.weights),
            ctx.gather(target.weights),
        )
        losses = {}
        if self.options.weight > 0:
            losses["covariance"] = self.options.weight * factor * coral_loss(*domains)
        if self.options.mean_weight > 0:
            losses["mean"] = self.options.mean_weight * factor * mean_loss(*domains)
        return losses


__all__ = ["CORAL", "coral_loss", "mean_loss"]
