"""Minimum class confusion, MCC (arXiv:1912.03699)."""

from __future__ import annotations

import torch
from torch import Tensor

from daptkit.method import DomainBatch, StepContext
from daptkit.nn import entropy, full_precision, ramp
from daptkit_pytorch_adapt.plugin import MCCOptions
from daptkit_pytorch_adapt.prior import PriorAware


@full_precision
def class_confusion(
    logits: Tensor,
    temperature: float = 2.5,
    prior: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Return how much the classes of a batch are confused with one another.

    sum_j a_j (1 - C_jj / sum_k C_jk), C = Y' diag(u) Y, Y = softmax(logits / T), u_i proportional
    to w_i (1 + exp(-H(Y_i))) with sum N and no gradient. As published a_j = 1/K; with ``prior`` it
    is the frequency that class j is expected to have, so that a rare class asks for rare images. A
    class without any mass in the batch adds nothing, where 0 / 0 makes other implementations NaN.
    Paper: arXiv:1912.03699, equations 3 to 6.

    Args:
        logits: (N, K).
        temperature: T, positive.
        prior: a (K,), at least 0, sums to 1; even if not given.
        weights: w (N,), at least 0, ones if not given.

    Returns:
        Scalar in [0, 1]; 0 where all weights are 0.
    """
    scaled = logits / temperature
    y = torch.softmax(scaled, 1)  # (N, K)
    sure = (1.0 + torch.exp(-entropy(scaled))).detach()
    if weights is not None:
        sure = sure * weights.detach().to(sure)
    u = sure * _reciprocal(sure.sum())  # a factor N cancels: only ratios of C count
    share = u @ y  # (K,), the row sums of C, since rows of Y sum to 1
    diagonal = u @ y.square()
    between = (share - diagonal).clamp_min(0.0) * _reciprocal(share)
    return between.mean() if prior is None else prior.to(between) @ between


def _reciprocal(total: Tensor) -> Tensor:
    """Return 1 / total where total is positive and 0 elsewhere, with a finite gradient."""
    defined = total > 0
    # Filled twice: 0 / 0 in the backward pass of what is not used would be NaN too.
    return total.masked_fill(~defined, 1.0).reciprocal().masked_fill(~defined, 0.0)


class MCC(PriorAware):
    """Learn features on which the classifier does not waver between classes of the target.

    Where another method owns ``target_prior`` or ``class_weights``, classes count by the
    frequencies that it expects and confusion is that of the posterior under them.

    Args:
        options: see :class:`daptkit_pytorch_adapt.plugin.MCCOptions`.
        task: gives the source prior.
    """

    options: MCCOptions

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return ``{"confusion": loss}``."""
        logits, prior = self.seen(target, ctx)
        loss = class_confusion(logits, self.options.temperature, prior, ctx.gather(target.weights))
        ctx.log("confusion", loss)
        factor = ramp(ctx.progress) if self.options.ramp else 1.0
        return {"confusion": self.options.weight * factor * loss}


__all__ = ["MCC", "class_confusion"]
