"""A small task and what a method sees of it: batches and steps, without model and images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from daptkit.method import DomainBatch, StepContext, TaskInfo


def make_task(num_classes: int = 3, features: int = 6) -> TaskInfo:
    """Return a task of equally common classes ``a``, ``b``, ...

    Args:
        num_classes: K, at most 26.
        features: D.
    """
    return TaskInfo(
        classes=tuple("abcdefghijklmnopqrstuvwxyz"[:num_classes]),
        dims={"features": features, "logits": num_classes},
        source_prior=torch.full((num_classes,), 1.0 / num_classes),
        n_source=100,
        n_target=80,
    )


def make_batch(
    n: int,
    seed: int,
    *,
    shift: float = 0.0,
    weights: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    task: TaskInfo | None = None,
) -> DomainBatch:
    """Return a batch of normal features and logits that carry a gradient, without labels.

    Args:
        n: images N.
        seed: of features and logits; the same numbers for every ``dtype``.
        shift: added to every feature.
        weights: (N,), ones if ``None``.
        dtype: of features (N, D) and logits (N, K).
        task: gives D and K; that of :func:`make_task` if ``None``.
    """
    dims = (task or make_task()).dims
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, dims["features"], generator=generator) + shift
    logits = 2 * torch.randn(n, dims["logits"], generator=generator)
    features, logits = (x.to(dtype).requires_grad_() for x in (features, logits))
    return _batch(features, logits, torch.ones(n) if weights is None else weights)


def join_batches(first: DomainBatch, second: DomainBatch) -> DomainBatch:
    """Return one batch of the rows of two; gradients reach both."""
    features = torch.cat([first.features, second.features])
    logits = torch.cat([first.logits, second.logits])
    return _batch(features, logits, torch.cat([first.weights, second.weights]))


def make_step(progress: float = 1.0, **values: Any) -> StepContext:
    """Return the context of one step, by default the last one, with weights of 1.

    Args:
        progress: fraction of the run that is done, in [0, 1].
        values: further fields of :class:`daptkit.method.StepContext`.
    """
    defaults: dict[str, Any] = {"step": 0, "class_weights": torch.ones(3)}
    return StepContext(progress=progress, **{**defaults, **values})


def _batch(features: Tensor, logits: Tensor, weights: Tensor) -> DomainBatch:
    rows = torch.arange(len(features))
    taps = {"features": features, "logits": logits}
    return DomainBatch(logits=logits, taps=taps, weights=weights, groups=rows, index=rows)
