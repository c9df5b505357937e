"""Whole-split passes of a model, without augmentation and without gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from daptkit.data import to_float
from daptkit.model import AdaptNet
from daptkit.model.network import evaluating
from daptkit.train.device import Precision, full_precision
from daptkit.train.domains import Domain, Rows, TaskData

Outputs = tuple[Tensor, dict[str, Tensor]]
"""Logits (N, K) and taps (N, ...) by layer."""


@torch.no_grad()
def forward_rows(
    net: AdaptNet,
    domain: Domain,
    rows: Rows,
    *,
    layers: tuple[str, ...] = ("features",),
    precision: Precision,
) -> Outputs:
    """Run the model in eval mode over rows of a domain, in order.

    Args:
        net: the model, on the device of ``precision``; the mode of each module is restored.
        domain: images or cached trunk features.
        rows: (N,) rows of the domain.
        layers: taps to return.
        precision: device and mixed precision.

    Returns:
        Uncorrected logits (N, K) and taps (N, ...), float32 on the CPU.
    """
    if not len(rows):
        raise ValueError("no rows to run the model on")
    logits: list[Tensor] = []
    taps: dict[str, list[Tensor]] = {}
    with evaluating(net):
        for inputs in domain.inputs(_chunks(rows, domain.chunk)):
            moved = to_float(inputs.to(precision.device))
            with precision.autocast():
                out, found = net(moved, layers, from_trunk=domain.trunk is not None)
            logits.append(out.float().cpu())
            for name, value in found.items():
                taps.setdefault(name, []).append(value.float().cpu())
    return torch.cat(logits), {name: torch.cat(parts) for name, parts in taps.items()}


class SplitPasses:
    """Whole-split passes of one state of a model, each run once however often it is asked for.

    Args:
        net: the model, which must not change while this lives.
        data: both domains.
        precision: device and mixed precision.
    """

    def __init__(self, net: AdaptNet, data: TaskData, precision: Precision) -> None:
        self.data = data
        self.precision = precision
        self._net = net
        self._known: dict[str, Outputs] = {}

    def of(self, split: str, layers: tuple[str, ...] = ("features",)) -> Outputs:
        """Return logits and at least the taps ``layers`` of a split of :class:`TaskData`."""
        known = self._known.get(split)
        if known is None or not set(layers) <= known[1].keys():
            domain, rows = self.data.split(split)
            wanted = tuple(dict.fromkeys((*layers, *(known[1] if known else ()))))
            known = forward_rows(self._net, domain, rows, layers=wanted, precision=self.precision)
            self._known[split] = known
        return known

    def in_full_precision(self) -> SplitPasses:
        """Return passes of the same model without mixed precision."""
        if not self.precision.enabled:
            return self
        return SplitPasses(self._net, self.data, full_precision(self.precision.device))

    def whole_target(self) -> Outputs:
        """Return logits and features of every target row, those not adapted to included."""
        everything = all_rows(self.data.target)
        if np.array_equal(everything, self.data.target_rows):
            return self.of("target")
        return forward_rows(self._net, self.data.target, everything, precision=self.precision)


def as_numpy(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return a tensor as float64, the precision of everything statistical."""
    return tensor.detach().cpu().double().numpy()


def all_rows(domain: Domain) -> Rows:
    """Return every row of a domain, in order."""
    return np.arange(len(domain), dtype=np.int64)


def _chunks(rows: Rows, size: int) -> Iterator[Rows]:
    """Yield ``rows`` in order, ``size`` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
