"""What may stop a run: numbers that are not finite, and parameters that nothing trains."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from daptkit.errors import NonFiniteLossError, PluginError
from daptkit.method import Method

_ADVICE = (
    "the last good state is kept in checkpoints/. Try a smaller --lr, --clip-grad 1, or a smaller"
    " weight of the method"
)
_SMALLEST_SCALE = 1e-3
"""Loss scale of float16 that only a long streak of overflows reaches; it starts at 65,536."""


def check_losses(losses: Mapping[str, Tensor], step: int) -> None:
    """Stop at a loss that is NaN or infinite; this reads the device once.

    Raises:
        NonFiniteLossError: the first such loss is named.
    """
    finite = torch.isfinite(torch.stack([value.detach() for value in losses.values()]))
    for name, good in zip(losses, finite.tolist(), strict=True):
        if not good:
            raise lost_loss(name, step)


def lost_loss(name: str, step: int) -> NonFiniteLossError:
    """Return the error of a loss that is NaN or infinite."""
    return NonFiniteLossError(f"loss '{name}' is not finite at step {step}; {_ADVICE}.")


def lost_gradient(step: int) -> NonFiniteLossError:
    """Return the error of a gradient that is not finite while every loss is."""
    return NonFiniteLossError(f"the gradient of a loss is not finite at step {step}; {_ADVICE}.")


def check_weights(module: nn.Module, step: int) -> None:
    """Stop before weights that are NaN or infinite are saved: finite losses may make them.

    This reads the device once.

    Raises:
        NonFiniteLossError: the first such parameter is named.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        return
    finite = torch.stack([torch.isfinite(value).all() for value in trained.values()])
    for name, good in zip(trained, finite.tolist(), strict=True):
        if not good:
            raise NonFiniteLossError(
                f"the gradient of a loss is not finite: '{name}' was lost before step {step};"
                f" {_ADVICE}."
            )


def check_scale(scaler: torch.amp.GradScaler, step: int) -> None:
    """Stop when float16 gradients overflow at every step, so that nothing is learned.

    Raises:
        NonFiniteLossError: the loss scale has collapsed.
    """
    if scaler.is_enabled() and scaler.get_scale() < _SMALLEST_SCALE:
        raise NonFiniteLossError(
            f"float16 gradients overflow at every step up to {step}, whatever their scale;"
            " use --amp-dtype bfloat16."
        )


def check_gradients(name: str, method: Method, package: str) -> None:
    """Check that the losses of a method reached all its parameters in the backward pass.

    Raises:
        PluginError: a parameter has no gradient.
    """
    unused = [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        raise PluginError(
            f"method '{name}' ({package}) has parameters that its losses do not use:"
            f" {', '.join(unused)}."
        )
