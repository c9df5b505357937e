"""Virtual adversarial training on the target, VAT (arXiv:1704.03976; DIRT-T: 1802.08735)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from daptkit.method import DomainBatch, Method, StepContext
from daptkit.nn import full_precision, ramp, weighted_mean
from daptkit_pytorch_adapt.draws import drawn_normal
from daptkit_pytorch_adapt.plugin import VATOptions

PROBE = 1e-2
"""Size of the step that probes the curvature: small, yet far above the rounding of float32."""

Logits = Callable[[Tensor], Tensor]


@full_precision
def divergence_of_rows(clean: Tensor, moved: Tensor) -> Tensor:
    """Return KL(softmax(clean_i) || softmax(moved_i)) of each row, (N,), in nats.

    Args:
        clean: (N, K), taken as given: no gradient.
        moved: (N, K).
    """
    log_p = torch.log_softmax(clean.detach(), 1)
    return (log_p.exp() * (log_p - torch.log_softmax(moved, 1))).sum(1)


def adversarial_direction(
    inputs: Tensor, clean: Tensor, logits: Logits, start: Tensor, probe: Tensor, iterations: int
) -> Tensor:
    """Return the direction in which each image's prediction changes most, by power iteration.

    d <- grad_r KL(p(x) || p(x + r)) at r = probe * d, root mean square of d 1. Gradients are asked
    for at r alone: none reaches the model's parameters, nor replaces what they have.

    Args:
        inputs: x (N, ...).
        clean: logits of x, (N, K).
        logits: the model.
        start: first direction, broadcasts with ``inputs``.
        probe: root mean square of the probing step, (N, 1, ...).
        iterations: at least 1.
    """
    direction = _unit(start.expand_as(inputs))
    for _ in range(iterations):
        step = (probe * direction).requires_grad_()
        # Rounding to half precision would drown the difference that the probe makes.
        with torch.enable_grad(), torch.autocast(inputs.device.type, enabled=False):
            divergence = divergence_of_rows(clean, logits(inputs + step)).sum()
        (gradient,) = torch.autograd.grad(divergence, step)
        direction = _unit(gradient)
    return direction


def _unit(x: Tensor) -> Tensor:
    """Return rows of root mean square 1; a row of zeros stays one."""
    size = _root_mean_square(x)
    return x / size.masked_fill(size == 0, 1.0)


def _root_mean_square(x: Tensor) -> Tensor:
    """Return that of each row, (N, 1, ...)."""
    size = x.flatten(1).square().mean(1).sqrt()
    return size.view(-1, *[1] * (x.dim() - 1))


class VAT(Method):
    """Make the predictions on the target the same for images that differ very little.

    L = weight * mean KL(p(x) || p(x + r)), r the worst change of root mean square
    epsilon * rms(x). Images of a step share the direction that the search starts from, so that
    the loss does not depend on how processes share the batch.

    Args:
        options: see :class:`daptkit_pytorch_adapt.plugin.VATOptions`.
        task: not used.
    """

    options: VATOptions
    layers = ("features", "logits")

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        """Return ``{"consistency": loss}``."""
        assert target.inputs is not None, "steps have inputs"
        inputs = target.inputs.detach().float()

        def logits(x: Tensor) -> Tensor:
            assert ctx.forward is not None, "the host offers a forward"
            return ctx.forward(x).logits

        with torch.no_grad():
            # Of these images alone: batch statistics of both domains together would differ.
            clean = logits(inputs)
            size = _root_mean_square(inputs)
            start = drawn_normal(inputs.shape[1:], ctx).to(inputs).unsqueeze(0)
        direction = adversarial_direction(
            inputs, clean, logits, start, PROBE * size, self.options.iterations
        )
        moved = logits(inputs + self.options.epsilon * size * direction)
        rows = ctx.gather(divergence_of_rows(clean, moved))
        loss = weighted_mean(rows, ctx.gather(target.weights))
        factor = self.options.weight * (ramp(ctx.progress) if self.options.ramp else 1.0)
        return {"consistency": factor * loss}


__all__ = ["VAT", "adversarial_direction", "divergence_of_rows"]
