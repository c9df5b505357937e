"""Parts of adversarial alignment: gradient reversal, ramp, domain loss and multilinear maps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from daptkit.nn.moments import weighted_mean
from daptkit.nn.precision import full_precision


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficient: float) -> Tensor:
        ctx.coefficient = coefficient
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return -ctx.coefficient * grads[0], None


def gradient_reversal(x: Tensor, coefficient: float) -> Tensor:
    """Return x unchanged and multiply its gradient by ``-coefficient``.

    R(x) = x, dR/dx = -lambda I.  Paper: arXiv:1505.07818.

    Args:
        x: any tensor.
        coefficient: lambda, at least 0.
    """
    reversed_: Tensor = _GradientReversal.apply(x, coefficient)
    return reversed_


def ramp(progress: float, gamma: float = 10.0) -> float:
    """Return the warm-up factor of adversarial training.

    lambda(p) = 2 / (1 + exp(-gamma p)) - 1.  Paper: arXiv:1505.07818.

    Args:
        progress: p, fraction of the whole run that is done, in [0, 1].
        gamma: steepness, positive.
    """
    return math.tanh(gamma * progress / 2.0)  # the same number, without overflow


@full_precision
def entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats of each row's softmax, H = -sum_k p_k log p_k.

    Args:
        logits: (N, K).

    Returns:
        (N,), in [0, log K].
    """
    log_p = torch.log_softmax(logits, 1)
    return -(log_p.exp() * log_p).sum(1)


@full_precision
def domain_bce(
    source_logits: Tensor,
    target_logits: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Return the domain classifier's binary cross-entropy, both domains counting the same.

    (mean_w log(1 + exp(-l_s)) + mean_w log(1 + exp(l_t))) / 2: source is 1, target is 0.
    Paper: arXiv:1505.07818.

    Args:
        source_logits: (N,).
        target_logits: (M,).
        source_weights: (N,), at least 0.
        target_weights: (M,), at least 0.
    """
    source = weighted_mean(torch.nn.functional.softplus(-source_logits), source_weights)
    target = weighted_mean(torch.nn.functional.softplus(target_logits), target_weights)
    return 0.5 * (source + target)


@full_precision
def multilinear_map(features: Tensor, probabilities: Tensor) -> Tensor:
    """Return the outer product of features and class probabilities of each row.

    T(f, g) = vec(f g').  Paper: arXiv:1705.10667.

    Args:
        features: (N, D).
        probabilities: (N, K).

    Returns:
        (N, D * K).
    """
    outer: Tensor = features[:, :, None] * probabilities[:, None, :]
    return outer.flatten(1)


@full_precision
def random_multilinear_map(
    features: Tensor, probabilities: Tensor, feature_matrix: Tensor, class_matrix: Tensor
) -> Tensor:
    """Return a random projection whose inner products estimate those of the outer product.

    T(f, g) = (f R_f) * (g R_g) / sqrt(R), elementwise, R_f and R_g fixed standard normal draws.
    Paper: arXiv:1705.10667.

    Args:
        features: (N, D).
        probabilities: (N, K).
        feature_matrix: R_f (D, R).
        class_matrix: R_g (K, R).

    Returns:
        (N, R).
    """
    scale = 1.0 / math.sqrt(feature_matrix.shape[1])
    projected: Tensor = (features @ feature_matrix) * (probabilities @ class_matrix)
    return projected * scale
