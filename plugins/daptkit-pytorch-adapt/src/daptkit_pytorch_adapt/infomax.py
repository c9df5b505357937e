"""Information maximisation: sure and diverse predictions (RIM; the IM loss of arXiv:2002.08546)."""

from __future__ import annotations

import torch
from torch import Tensor

from daptkit.method import DomainBatch, StepContext
from daptkit.nn import full_precision, ramp
from daptkit_pytorch_adapt.layers import DiversityLoss, EntropyLoss
from daptkit_pytorch_adapt.plugin import InfomaxOptions
from daptkit_pytorch_adapt.prior import PriorAware

mean_entropy = full_precision(EntropyLoss().forward)
"""Mean entropy in nats of the rows' softmax, pytorch-adapt's ``EntropyLoss``."""

evenness_loss = full_precision(DiversityLoss().forward)
"""Negative entropy of the mean softmax, pytorch-adapt's ``DiversityLoss``."""


@full_precision
def prior_gap(logits: Tensor, prior: Tensor) -> Tensor:
    """Return how far the mean prediction is from an expected mixture of classes.

    KL(mean softmax(z) || q) - log K: for even q this is ``evenness_loss``, to rounding.

    Args:
        logits: (N, K).
        prior: q (K,), at least 0, sums to 1; frequencies below 1e-6 count as that.
    """
    mean = torch.softmax(logits, 1).mean(0)
    tiny = torch.finfo(mean.dtype).tiny
    kl = (mean * (mean.clamp_min(tiny).log() - prior.to(mean).clamp_min(1e-6).log())).sum()
    return kl - torch.log(kl.new_tensor(float(len(prior))))


class Infomax(PriorAware):
    """Make the predictions on the target sure one by one and diverse together.

    L = mean H(p_i) - diversity * H(mean p_i). Where another method owns ``target_prior`` or
    ``class_weights``, the second term is diversity * (KL(mean p_i || q) - log K) instead.

    Args:
        options: see :class:`daptkit_pytorch_adapt.plugin.InfomaxOptions`.
        task: gives the source prior.
    """

    options: InfomaxOptions

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return ``{"entropy": loss, "diversity": loss}``; a term of weight 0 is left out."""
        logits, prior = self.seen(target, ctx)
        factor = self.options.weight * (ramp(ctx.progress) if self.options.ramp else 1.0)
        losses = {"entropy": factor * mean_entropy(logits)}
        if self.options.diversity > 0:
            gap = evenness_loss(logits) if prior is None else prior_gap(logits, prior)
            losses["diversity"] = factor * self.options.diversity * gap
        return losses


__all__ = ["Infomax", "evenness_loss", "mean_entropy", "prior_gap"]
