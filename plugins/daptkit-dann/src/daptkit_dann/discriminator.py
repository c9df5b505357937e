"""The domain discriminator of DANN and CDAN, and one round of the game that it plays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daptkit.method import StepContext
from daptkit.nn import domain_bce, gradient_reversal, weighted_mean


class Discriminator(nn.Module):
    """Tell source rows from target rows: D -> hidden -> hidden -> 1 with ReLU.

    There is no normalisation across the batch, which would mix rows of different weight, and the
    output is a logit: source positive, target negative.  Paper: arXiv:1505.07818.

    Args:
        in_features: D.
        hidden: width of both hidden layers.
        dropout: after each hidden layer, in [0, 1).
    """

    def __init__(self, in_features: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(in_features, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, D) to domain logits (N,)."""
        x = inputs.to(self.first.weight.dtype)
        x = self.dropout(torch.relu(self.first(x)))
        x = self.dropout(torch.relu(self.second(x)))
        logits: Tensor = self.last(x)
        return logits.squeeze(1)


def adversarial_loss(
    discriminator: Discriminator,
    source: Tensor,
    target: Tensor,
    source_weights: Tensor,
    target_weights: Tensor,
    coefficient: float,
    ctx: StepContext,
) -> Tensor:
    """Return the discriminator's loss, whose gradient into the inputs is reversed.

    Both domains pass the discriminator in one call. Logits and weights are gathered, so that the
    weighted means are those of the global batch. Logs ``discriminator_accuracy``: the mean over
    the two domains of the weighted fraction told right, in [0, 1]; 0.5 is chance.

    Args:
        discriminator: maps (N, D) to (N,).
        source: (N, D).
        target: (M, D).
        source_weights: (N,), at least 0.
        target_weights: (M,), at least 0.
        coefficient: factor of the reversed gradient, at least 0.
        ctx: the step.
    """
    inputs = gradient_reversal(torch.cat([source, target]), coefficient)  # (N + M, D)
    local_s, local_t = discriminator(inputs).split([source.shape[0], target.shape[0]])
    s, t = ctx.gather(local_s), ctx.gather(local_t)
    ws, wt = ctx.gather(source_weights), ctx.gather(target_weights)
    right = weighted_mean((s > 0).float(), ws) + weighted_mean((t <= 0).float(), wt)
    ctx.log("discriminator_accuracy", 0.5 * right)
    return domain_bce(s, t, ws, wt)


__all__ = ["Discriminator", "adversarial_loss"]
