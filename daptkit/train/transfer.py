"""Batches from the CPU to the device that trains, one ahead and beside the step on a GPU."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Parts = tuple[Tensor | None, ...]
"""Tensors of one batch; ``None`` for one that it does not have."""


def to_device(batches: Generator[Parts], device: torch.device) -> Iterator[Parts]:
    """Yield the batches on a device, the same ones in the same order.

    To a GPU the next batch is copied while the one before it is trained on: from page-locked
    memory, on a stream of its own, and nothing waits for the device but the device itself.

    Args:
        batches: tensors on the CPU; closed when this ends.
        device: where they go.
    """
    if device.type == "cuda":
        yield from one_ahead(batches, SideStream(device))
    else:
        for parts in batches:
            yield tuple(None if part is None else part.to(device) for part in parts)


class Sender(Protocol):
    """What :func:`one_ahead` lets go before it is needed."""

    def send(self, parts: Parts) -> Sent:
        """Start to copy a batch, without waiting for it."""

    def receive(self, sent: Sent) -> Parts:
        """Return the batch for the work that is queued from now on, without waiting for it."""


@dataclass(frozen=True)
class Sent:
    """A batch on its way, and the mark that the device reaches when it is there."""

    parts: Parts
    arrived: torch.cuda.Event | None


def one_ahead(batches: Generator[Parts], sender: Sender) -> Iterator[Parts]:
    """Yield each batch once the one after it has been sent.

    What reading a batch raises is raised in its place, after the batches before it, as it would be
    without looking ahead.

    Args:
        batches: closed when this ends, also before its end.
        sender: takes them to the device.
    """
    waiting: Sent | None = None
    try:
        while True:
            try:
                following = sender.send(next(batches))
            except StopIteration:
                following = None
            except Exception:
                if waiting is not None:
                    yield sender.receive(waiting)
                raise
            if waiting is not None:
                yield sender.receive(waiting)
            if following is None:
                return
            waiting = following
    finally:
        batches.close()


class SideStream:
    """Copies to a GPU beside the work that is queued on its current stream.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, parts: Parts) -> Sent:
        """Queue the copies of a batch; its page-locked memory is kept until they are done."""
        with torch.cuda.stream(self._stream):
            moved = tuple(
                None if part is None else part.pin_memory().to(self._device, non_blocking=True)
                for part in parts
            )
        return Sent(moved, self._stream.record_event())

    def receive(self, sent: Sent) -> Parts:
        """Let the current stream wait for this batch, but not for those sent after it."""
        current = torch.cuda.current_stream(self._device)
        assert sent.arrived is not None
        current.wait_event(sent.arrived)
        for part in sent.parts:
            if part is not None:
                # Its memory was given out on the side stream, which must not take it back while
                # the current one still reads it.
                part.record_stream(current)
        return sent.parts
