"""Maximum classifier discrepancy, MCD, by gradient reversal (arXiv:1712.02560, 1903.04064)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from daptkit.method import DomainBatch, Method, StepContext, TaskInfo
from daptkit.nn import full_precision, gradient_reversal, ramp, weighted_mean
from daptkit_pytorch_adapt.draws import drawn_normal
from daptkit_pytorch_adapt.layers import MCDLoss
from daptkit_pytorch_adapt.plugin import MCDOptions

absolute_discrepancy = full_precision(MCDLoss().forward)
"""Mean absolute difference of two softmaxes, pytorch-adapt's ``MCDLoss``."""

_cross_entropy = full_precision(functional.cross_entropy)


@full_precision
def sliced_discrepancy(first: Tensor, second: Tensor, projections: Tensor) -> Tensor:
    """Return the sliced Wasserstein distance of two sets of predictions.

    mean over m and i of (sort(P_1 r_m)_i - sort(P_2 r_m)_i)^2, P = softmax(logits), r_m of length
    1.  Paper: arXiv:1903.04064, algorithm 1.

    Args:
        first: logits (N, K).
        second: logits (N, K) of the same images.
        projections: r (K, M), of any length but 0.
    """
    directions = functional.normalize(projections.to(first), dim=0)
    a, b = ((torch.softmax(x, 1) @ directions).sort(0).values for x in (first, second))
    return (a - b).square().mean()


class MCD(Method):
    """Move the target's features to where classifiers that the source taught agree.

    Two heads of their own learn the source; on the target they drive their predictions apart, and
    the features, whose gradient is reversed, together: L = CE(h_1) + CE(h_2) - d(h_1(R(f_t)),
    h_2(R(f_t))), R scaling the reversed gradient by the weight. The published three steps with two
    optimisers become one, which a shared trainer can take. The model keeps its own head.

    Args:
        options: see :class:`daptkit_pytorch_adapt.plugin.MCDOptions`.
        task: sizes the heads.
    """

    options: MCDOptions
    layers = ("features", "logits")

    def __init__(self, options: MCDOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(task.dims["features"], options.hidden),
                nn.ReLU(),
                nn.Linear(options.hidden, task.num_classes),
            )
            for _ in range(2)
        )

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return ``{"heads": loss, "discrepancy": loss}``."""
        assert source is not None, "the specification needs a source"
        assert source.labels is not None, "the specification needs source labels"
        mass = ctx.gather(source.weights)
        known = [
            _cross_entropy(head(source.features), source.labels, reduction="none")
            for head in self.heads
        ]
        taught = [weighted_mean(ctx.gather(rows), mass) for rows in known]
        factor = ramp(ctx.progress) if self.options.ramp else 1.0
        features = gradient_reversal(target.features, self.options.weight * factor)
        first, second = (ctx.gather(head(features)) for head in self.heads)
        if self.options.distance == "sliced":
            projections = drawn_normal((first.shape[1], self.options.projections), ctx).to(first)
            apart = sliced_discrepancy(first, second, projections)
        else:
            apart = absolute_discrepancy(first, second)
        ctx.log("apart", apart)
        return {"heads": taught[0] + taught[1], "discrepancy": -apart}

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the heads' parameters with their own learning rate."""
        return [{"params": list(self.parameters()), "lr_scale": self.options.lr_scale}]


__all__ = ["MCD", "absolute_discrepancy", "sliced_discrepancy"]
