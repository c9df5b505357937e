"""Minimum class confusion (arXiv:1912.03699)."""

from __future__ import annotations

import torch
from torch import Tensor

from daptkit.method import DomainBatch, Method, StepContext
from daptkit.nn import entropy, full_precision
from daptkit_mcc.plugin import MCCOptions


@full_precision
def mcc_loss(logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Return how much a batch confuses its classes.

    Y = softmax(logits / T), C = Y' diag(w (1 + exp(-H))) Y with H the entropy of each row of Y, the
    rows of C divided by their sums; the loss is the mean over rows of what is off the diagonal.
    Images count more the surer they are, without a gradient.  Paper: arXiv:1912.03699.

    Args:
        logits: (N, K).
        weights: (N,), at least 0.
        temperature: T, positive.

    Returns:
        Scalar in [0, 1]; a class without any probability adds 0.
    """
    softened = logits / temperature
    probability = torch.softmax(softened, 1)  # (N, K)
    certainty = weights * (1.0 + torch.exp(-entropy(softened.detach())))  # (N,)
    confusion = (probability * certainty[:, None]).T @ probability  # (K, K)
    total = confusion.sum(1)
    absent = total <= 0
    confused = (total - confusion.diagonal()) / total.masked_fill(absent, 1.0)
    return confused.masked_fill(absent, 0.0).mean()


class MCC(Method):
    """Learn a model that is sure which class a target image belongs to, and uses every class.

    Args:
        options: see :class:`daptkit_mcc.plugin.MCCOptions`.
        task: not used.
    """

    options: MCCOptions
    layers = ("logits",)

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return ``{"confusion": loss}``."""
        logits, weights = ctx.gather(target.logits), ctx.gather(target.weights)
        loss = mcc_loss(logits, weights, self.options.temperature)
        return {"confusion": self.options.weight * loss}


__all__ = ["MCC", "mcc_loss"]
