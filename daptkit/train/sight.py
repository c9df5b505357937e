"""How a model sees a domain: what methods do to its features and statistics in every pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from daptkit.model.norms import Statistics

Align = Callable[[Tensor], Tensor]
"""From pooled features (N, D') to those that the bottleneck sees."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """How a model sees images of one domain.

    Args:
        align: what their pooled features pass before the bottleneck, in eval mode; ``None`` for
            nothing.
        statistics: what normalisation layers take in place of their own.
    """

    align: Align | None = None
    statistics: Statistics = field(default_factory=dict)


PLAIN = Sight()
"""The model by itself."""

Sights = Callable[[str], Sight]
"""From ``"source"`` or ``"target"`` to how the model, as it is now, sees it."""


def plain_sight(domain: str) -> Sight:
    """Return the model by itself, for either domain."""
    return PLAIN
