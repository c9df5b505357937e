"""Whole-split passes of a model, without augmentation and without gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from daptkit.model import AdaptNet
from daptkit.train.device import Precision
from daptkit.train.domains import Domain, Rows


def chunks(rows: Rows, size: int) -> Iterator[Rows]:
    """Yield ``rows`` in order, ``size`` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


@torch.no_grad()
def forward_rows(
    net: AdaptNet,
    domain: Domain,
    rows: Rows,
    *,
    layers: tuple[str, ...] = ("features",),
    batch_size: int = 256,
    precision: Precision,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run the model in eval mode over rows of a domain, in order.

    Args:
        net: the model, on the device of ``precision``; its training mode is restored.
        domain: images or cached trunk features.
        rows: (N,) rows of the domain.
        layers: taps to return.
        batch_size: images of one forward.
        precision: device and mixed precision.

    Returns:
        Uncorrected logits (N, K) and taps (N, ...), float32 on the CPU.
    """
    training = net.training
    net.eval()
    device = precision.device
    logits: list[Tensor] = []
    taps: dict[str, list[Tensor]] = {}
    for inputs in domain.inputs(chunks(rows, batch_size)):
        with precision.autocast():
            out, found = net(inputs.to(device), layers, from_trunk=domain.trunk is not None)
        logits.append(out.float().cpu())
        for name, value in found.items():
            taps.setdefault(name, []).append(value.float().cpu())
    net.train(training)
    if not logits:
        raise ValueError("no rows to run the model on")
    return torch.cat(logits), {name: torch.cat(parts) for name, parts in taps.items()}


def as_numpy(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return a tensor as float64, the precision of everything statistical."""
    return tensor.detach().cpu().double().numpy()


def all_rows(domain: Domain) -> Rows:
    """Return every row of a domain, in order."""
    return np.arange(len(domain), dtype=np.int64)
