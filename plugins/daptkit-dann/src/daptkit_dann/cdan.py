"""Conditional adversarial domain adaptation (arXiv:1705.10667)."""

from __future__ import annotations

import torch
from torch import Tensor

from daptkit.method import DomainBatch, TaskInfo
from daptkit.nn import entropy, multilinear_map, random_multilinear_map
from daptkit_dann.dann import DANN
from daptkit_dann.plugin import CDANOptions


def entropy_weights(logits: Tensor, weights: Tensor) -> Tensor:
    """Return importance weights that count confident predictions more, without a gradient.

    w_i (1 + exp(-H_i)), H the entropy of softmax(logits_i). Their scale is free: the weighted
    means of the loss divide by the sum over each domain.

    Args:
        logits: (N, K).
        weights: (N,), at least 0.

    Returns:
        (N,).
    """
    return weights * (1.0 + torch.exp(-entropy(logits.detach())))


class CDAN(DANN):
    """Learn features whose joint distribution with the predicted class is the same in both domains.

    DANN on T(f, g) = vec(f g'), g = softmax(logits); where D * K exceeds ``outer_limit``, on
    (f R_f) * (g R_g) / sqrt(R) with fixed random matrices. With ``entropy`` images count by
    1 + exp(-H(g)), normalised within each domain. g is a constant for the gradient in both places,
    as in the authors' Transfer-Learning-Library; their first release lets the entropy weight pass a
    reversed gradient, which this leaves out.

    Args:
        options: see :class:`daptkit_dann.plugin.CDANOptions`.
        task: ``dims["features"]`` and the number of classes size the map.
    """

    options: CDANOptions
    feature_matrix: Tensor | None
    class_matrix: Tensor | None

    def __init__(self, options: CDANOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        features, classes, size = task.dims["features"], task.num_classes, options.random_dim
        randomised = features * classes > options.outer_limit
        self.register_buffer("feature_matrix", torch.randn(features, size) if randomised else None)
        self.register_buffer("class_matrix", torch.randn(classes, size) if randomised else None)

    def discriminator_inputs(self) -> int:
        """Return the size of the multilinear map."""
        outer = self.task.dims["features"] * self.task.num_classes
        return self.options.random_dim if outer > self.options.outer_limit else outer

    def seen(self, batch: DomainBatch) -> Tensor:
        """Map features (N, D) and class probabilities (N, K) to the discriminator's input."""
        probabilities = torch.softmax(batch.logits.detach().float(), 1)
        if self.feature_matrix is None or self.class_matrix is None:
            return multilinear_map(batch.features, probabilities)
        return random_multilinear_map(
            batch.features, probabilities, self.feature_matrix, self.class_matrix
        )

    def image_weights(self, batch: DomainBatch) -> Tensor:
        """Return the weight of each image in the domain loss, (N,)."""
        if not self.options.entropy:
            return batch.weights
        return entropy_weights(batch.logits, batch.weights)


__all__ = ["CDAN", "entropy_weights"]
