"""Means of named scalars between two log steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from daptkit.train.device import read_numbers


@dataclass
class Window:
    """Sums of losses and logged values since the last log step, on the device."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    losses: set[str] = field(default_factory=set)

    def add(self, losses: Mapping[str, Tensor], logs: Mapping[str, Tensor]) -> None:
        """Add the named scalars of one step; a name may be missing at some steps."""
        self.losses.update(losses)
        for name, value in {**losses, **logs}.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means over the steps that had a value, and start again; one read."""
        totals = dict(zip(self.sums, read_numbers(list(self.sums.values())), strict=True))
        means = {name: total / self.counts[name] for name, total in totals.items()}
        self.sums, self.counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {
            "sums": dict(self.sums),
            "counts": dict(self.counts),
            "losses": sorted(self.losses),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device) -> Window:
        """Rebuild a window from a checkpoint."""
        sums = {name: value.to(device) for name, value in state["sums"].items()}
        return cls(sums, dict(state["counts"]), set(state["losses"]))
