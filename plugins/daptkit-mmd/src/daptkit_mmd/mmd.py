"""Maximum mean discrepancy of deep adaptation networks (arXiv:1502.02791)."""

from __future__ import annotations

from torch import Tensor

from daptkit.method import DomainBatch, Method, StepContext
from daptkit.nn import mmd2, ramp
from daptkit_mmd.plugin import MMDOptions


def mmd_loss(
    source: Tensor,
    target: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
    *,
    k_min: int = -3,
    k_max: int = 1,
) -> Tensor:
    """Return the squared discrepancy of two samples under a sum of Gaussian kernels.

    sum_ij a_i a_j k(s_i, s_j) + sum_ij b_i b_j k(t_i, t_j) - 2 sum_ij a_i b_j k(s_i, t_j) with
    a, b the weights divided by their sums, k(x, y) = sum_k exp(-||x - y||^2 / (2 * 2^k * m)) and m
    the weighted mean squared distance, a constant for the gradient.  Paper: arXiv:1502.02791.

    Args:
        source: (N, D).
        target: (M, D).
        source_weights: (N,), at least 0, ones if not given.
        target_weights: (M,), at least 0, ones if not given.
        k_min: narrowest kernel.
        k_max: widest kernel, at least ``k_min``.

    Returns:
        Scalar, at least 0; 0 where a domain's weights sum to 0 or all features are equal.
    """
    powers = range(k_min, k_max + 1)
    return mmd2(source, target, source_weights, target_weights, powers=powers)


class MMD(Method):
    """Learn features with the same kernel mean embedding in both domains.

    Args:
        options: see :class:`daptkit_mmd.plugin.MMDOptions`.
        task: not used.
    """

    options: MMDOptions
    loss_name = "mmd"

    def discrepancy(self, source: DomainBatch, target: DomainBatch, ctx: StepContext) -> Tensor:
        """Return the squared discrepancy of the gathered batches."""
        return mmd_loss(
            ctx.gather(source.features),
            ctx.gather(target.features),
            ctx.gather(source.weights),
            ctx.gather(target.weights),
            k_min=self.options.k_min,
            k_max=self.options.k_max,
        )

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return the weighted and ramped discrepancy under ``loss_name``."""
        assert source is not None, "the specification needs a source"
        factor = ramp(ctx.progress) if self.options.ramp else 1.0
        return {
            self.loss_name: self.options.weight * factor * self.discrepancy(source, target, ctx)
        }


__all__ = ["MMD", "mmd_loss"]
