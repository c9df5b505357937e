"""Which plugin packages a checkpoint was written with, and which continue it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_TOLERANCE = 1e-3
"""By what share numbers may differ that another machine has rounded."""

Fitted = Mapping[str, Mapping[str, Tensor]]
"""What methods found of the images before training, and how much they change them, by name."""


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


def changed_fits(written: Fitted | None, now: Fitted) -> list[str]:
    """Return the methods that align the same images otherwise than when a checkpoint was written.

    Args:
        written: of the checkpoint; ``None`` in those of before it was recorded, of which nothing
            is known.
        now: of the run that continues it.
    """
    if written is None:
        return []
    either = dict.fromkeys([*written, *now])
    return [n for n in either if n not in written or n not in now or _differ(written[n], now[n])]


def _differ(written: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> bool:
    if written.keys() != now.keys():
        return True
    return not all(_same(before, now[key]) for key, before in written.items())


def _same(before: Tensor, now: Tensor) -> bool:
    if before.shape != now.shape:
        return False
    a, b = before.cpu().double(), now.cpu().double()
    largest = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True)
