"""Adaptive feature norm, the stepwise form (arXiv:1811.07456)."""

from __future__ import annotations

from torch import Tensor

from daptkit.method import DomainBatch, Method, StepContext
from daptkit.nn import full_precision, weighted_mean
from daptkit_pytorch_adapt.plugin import AFNOptions


@full_precision
def feature_norm_loss(features: Tensor, step: float, weights: Tensor | None = None) -> Tensor:
    """Return the loss whose gradient makes features longer.

    mean_w (||f_i|| - (||f_i|| + step))^2, the second norm without a gradient. Its value is
    step^2 whatever the features, its gradient -2 step d||f_i||.  Paper: arXiv:1811.07456,
    equation 8.

    Args:
        features: (N, D).
        step: by how much norms should grow, at least 0.
        weights: (N,), at least 0, ones if not given.
    """
    norms = features.norm(dim=1)  # (N,)
    return weighted_mean((norms - (norms.detach() + step)).square(), weights)


class AFN(Method):
    """Let the features of both domains grow longer step by step.

    Args:
        options: see :class:`daptkit_pytorch_adapt.plugin.AFNOptions`.
        task: not used.
    """

    options: AFNOptions

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return ``{"source_norm": loss, "target_norm": loss}``."""
        assert source is not None, "the specification needs a source"
        losses = {}
        for name, batch in (("source", source), ("target", target)):
            features, weights = ctx.gather(batch.features), ctx.gather(batch.weights)
            # The loss itself is a constant: only this shows what it does.
            ctx.log(f"{name}_length", weighted_mean(features.float().norm(dim=1), weights))
            loss = feature_norm_loss(features, self.options.step, weights)
            losses[f"{name}_norm"] = self.options.weight * loss
        return losses


__all__ = ["AFN", "feature_norm_loss"]
