"""Domain-adversarial training of neural networks (arXiv:1505.07818)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from daptkit.method import DomainBatch, Method, StepContext, TaskInfo
from daptkit.nn import ramp
from daptkit_dann.discriminator import Discriminator, adversarial_loss
from daptkit_dann.plugin import DANNOptions


class DANN(Method):
    """Learn features from which a discriminator cannot tell the domain.

    L = (mean_w log(1 + exp(-d(f_s))) + mean_w log(1 + exp(d(f_t)))) / 2, minimised by the
    discriminator d and, its gradient times -weight * (2 / (1 + exp(-gamma p)) - 1), by the model.
    As in the paper the factor leaves the discriminator's own gradient alone. p runs from 0 to 1
    over the run, or over what is left of it after ``delay``.

    Args:
        options: see :class:`daptkit_dann.plugin.DANNOptions`.
        task: ``dims["features"]`` sizes the discriminator.
    """

    options: DANNOptions

    def __init__(self, options: DANNOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.discriminator = Discriminator(
            self.discriminator_inputs(), options.hidden, options.dropout
        )

    def discriminator_inputs(self) -> int:
        """Return how many numbers the discriminator sees of each image."""
        return self.task.dims["features"]

    def coefficient(self, ctx: StepContext) -> float:
        """Return the factor of the reversed gradient at this step."""
        delay = self.options.delay
        progress = max(0.0, ctx.progress - delay) / (1.0 - delay)
        return self.options.weight * ramp(progress, self.options.gamma)

    def seen(self, batch: DomainBatch) -> Tensor:
        """Return what the discriminator sees of each image, (N, ``discriminator_inputs()``)."""
        return batch.features

    def image_weights(self, batch: DomainBatch) -> Tensor:
        """Return the weight of each image in the domain loss, (N,)."""
        return batch.weights

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return ``{"domain": loss}``."""
        assert source is not None, "the specification needs a source"
        loss = adversarial_loss(
            self.discriminator,
            self.seen(source),
            self.seen(target),
            self.image_weights(source),
            self.image_weights(target),
            self.coefficient(ctx),
            ctx,
        )
        return {"domain": loss}

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the discriminator's parameters with their own learning rate."""
        return [{"params": list(self.parameters()), "lr_scale": self.options.lr_scale}]


__all__ = ["DANN"]
