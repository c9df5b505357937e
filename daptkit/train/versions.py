"""Which plugin packages a checkpoint was written with, and which continue it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_TOLERANCE = 1e-4
"""What sums may differ by that another machine has rounded."""

Fitted = Mapping[str, Mapping[str, Tensor]]
"""What methods found of the images before training, by name."""


def version_changes(written: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return a warning for each method whose package or version is another one.

    Args:
        written: method to ``"package version"`` in the checkpoint; empty in those of before it was
            recorded.
        now: the same of the run that continues it.
    """
    return [
        f"warning: method '{name}' was {before} when the checkpoint was written and is"
        f" {now[name]} now: the run goes on, and may not be what either version alone would give."
        for name, before in written.items()
        if name in now and now[name] != before
    ]


def changed_fits(written: Fitted, now: Fitted) -> list[str]:
    """Return the methods that find something else of the same images than the checkpoint holds.

    Args:
        written: of the checkpoint; methods that it does not name are not compared.
        now: of the run that continues it, which has the same methods.
    """
    return [name for name, state in written.items() if _differ(state, now[name])]


def _differ(written: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> bool:
    if written.keys() != now.keys():
        return True
    pairs = [(before.cpu(), now[key].cpu()) for key, before in written.items()]
    return not all(
        a.shape == b.shape
        and torch.allclose(a.double(), b.double(), rtol=_TOLERANCE, atol=_TOLERANCE)
        for a, b in pairs
    )
