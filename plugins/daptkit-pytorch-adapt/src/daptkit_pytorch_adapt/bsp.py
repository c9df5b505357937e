"""Batch spectral penalisation, BSP (Chen et al. 2019, proceedings.mlr.press/v97/chen19i.html)."""

from __future__ import annotations

from torch import Tensor

from daptkit.method import DomainBatch, Method, StepContext
from daptkit.nn import full_precision, ramp
from daptkit_pytorch_adapt.layers import BatchSpectralLoss, singular_or_nan
from daptkit_pytorch_adapt.plugin import BSPOptions


@full_precision
def spectral_penalty(features: Tensor, k: int = 1, weights: Tensor | None = None) -> Tensor:
    """Return the sum of the k largest squared singular values of a batch of features.

    sum_{i <= k} sigma_i(diag(sqrt(w)) F)^2, so that an image of weight 2 counts as two and one of
    weight 0 as none; pytorch-adapt's ``BatchSpectralLoss`` of those rows.
    Paper: Chen et al. 2019, equation 5.

    Args:
        features: F (N, D).
        k: at least 1.
        weights: w (N,), at least 0, ones if not given.
    """
    if weights is not None:
        features = features * weights.detach().to(features).sqrt()[:, None]
    return singular_or_nan(BatchSpectralLoss(k), features)


class BSP(Method):
    """Keep the strongest directions of the features from taking over; goes with an alignment.

    Args:
        options: see :class:`daptkit_pytorch_adapt.plugin.BSPOptions`.
        task: not used.
    """

    options: BSPOptions

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return ``{"source_spectrum": loss, "target_spectrum": loss}``."""
        assert source is not None, "the specification needs a source"
        factor = self.options.weight * (ramp(ctx.progress) if self.options.ramp else 1.0)
        return {
            f"{name}_spectrum": factor
            * spectral_penalty(ctx.gather(b.features), self.options.k, ctx.gather(b.weights))
            for name, b in (("source", source), ("target", target))
        }


__all__ = ["BSP", "spectral_penalty"]
