"""Joint maximum mean discrepancy of joint adaptation networks (arXiv:1605.06636)."""

from __future__ import annotations

import torch
from torch import Tensor

from daptkit.method import DomainBatch, StepContext
from daptkit.nn import joint_mmd2
from daptkit_mmd.mmd import MMD
from daptkit_mmd.plugin import JMMDOptions


def jmmd_loss(
    source: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
    *,
    k_min: int = -3,
    k_max: int = 1,
    class_bandwidth: float = 1.68,
) -> Tensor:
    """Return the squared discrepancy of features and class probabilities together.

    As the discrepancy of one layer, with the kernel k_f(f, f') exp(-||p - p'||^2 / class_bandwidth)
    and k_f(f, f') = sum_k exp(-||f - f'||^2 / (2 * 2^k * m)), m the weighted mean squared distance
    of features, a constant for the gradient; kernels as in the authors' code.
    Paper: arXiv:1605.06636.

    Args:
        source: features (N, D) and logits (N, K).
        target: features (M, D) and logits (M, K).
        source_weights: (N,), at least 0, ones if not given.
        target_weights: (M,), at least 0, ones if not given.
        k_min: narrowest kernel of the features.
        k_max: widest kernel of the features, at least ``k_min``.
        class_bandwidth: denominator of the kernel of probabilities, positive.

    Returns:
        Scalar, at least 0.
    """
    (source_features, source_logits), (target_features, target_logits) = source, target
    return joint_mmd2(
        (source_features, _probabilities(source_logits)),
        (target_features, _probabilities(target_logits)),
        source_weights,
        target_weights,
        powers=(range(k_min, k_max + 1), range(1)),
        bandwidths=(None, class_bandwidth / 2.0),
    )


def _probabilities(logits: Tensor) -> Tensor:
    """Softmax in the type that the kernels work in, which half precision would coarsen."""
    return torch.softmax(logits if logits.dtype == torch.float64 else logits.float(), 1)


class JMMD(MMD):
    """Learn features and predictions with the same joint kernel embedding in both domains.

    Args:
        options: see :class:`daptkit_mmd.plugin.JMMDOptions`.
        task: not used.
    """

    options: JMMDOptions
    loss_name = "joint_mmd"

    def discrepancy(self, source: DomainBatch, target: DomainBatch, ctx: StepContext) -> Tensor:
        """Return the squared joint discrepancy of the gathered batches."""
        return jmmd_loss(
            (ctx.gather(source.features), ctx.gather(source.logits)),
            (ctx.gather(target.features), ctx.gather(target.logits)),
            ctx.gather(source.weights),
            ctx.gather(target.weights),
            k_min=self.options.k_min,
            k_max=self.options.k_max,
            class_bandwidth=self.options.class_bandwidth,
        )


__all__ = ["JMMD", "jmmd_loss"]
