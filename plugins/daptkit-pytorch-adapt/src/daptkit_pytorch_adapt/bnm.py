"""Batch nuclear-norm maximisation, BNM (arXiv:2003.12237)."""

from __future__ import annotations

import torch
from torch import Tensor

from daptkit.method import DomainBatch, StepContext
from daptkit.nn import full_precision, ramp
from daptkit_pytorch_adapt.layers import BNMLoss, singular_or_nan
from daptkit_pytorch_adapt.plugin import BNMOptions
from daptkit_pytorch_adapt.prior import PriorAware

_published = BNMLoss()


@full_precision
def nuclear_norm_loss(logits: Tensor, prior: Tensor | None = None) -> Tensor:
    """Return the negative nuclear norm of a batch of predictions.

    -||P diag(sqrt(K q))||_* / N, P = softmax(logits): large for sure and diverse predictions. As
    published, without ``prior``, the roots are 1 and sure predictions score most where classes are
    even; with it, where they have frequencies q. The published form is pytorch-adapt's ``BNMLoss``,
    in float32, since it raises in half precision.  Paper: arXiv:2003.12237, equation 9.

    Args:
        logits: (N, K).
        prior: q (K,), at least 0, sums to 1.

    Returns:
        Scalar in [-sqrt(K / N), 0) for even q.
    """
    if prior is None:
        return singular_or_nan(_published, logits)
    scaled = torch.softmax(logits, 1) * (len(prior) * prior).sqrt().to(logits)
    return -singular_or_nan(_nuclear_norm, scaled) / len(logits)


def _nuclear_norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.svdvals(x).sum()
    return norm


class BNM(PriorAware):
    """Make the predictions on the target sure and as diverse as the batch allows.

    Where another method owns ``target_prior`` or ``class_weights``, as diverse as they say.

    Args:
        options: see :class:`daptkit_pytorch_adapt.plugin.BNMOptions`.
        task: gives the source prior.
    """

    options: BNMOptions

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return ``{"nuclear_norm": loss}``."""
        logits, prior = self.seen(target, ctx)
        factor = ramp(ctx.progress) if self.options.ramp else 1.0
        return {"nuclear_norm": self.options.weight * factor * nuclear_norm_loss(logits, prior)}


__all__ = ["BNM", "nuclear_norm_loss"]
