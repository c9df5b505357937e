"""Batches on their way to a device: order, how far ahead, errors, and the order on the streams."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from daptkit.train.domains import training_batches
from daptkit.train.transfer import one_ahead, to_device
from fakes import make_job, tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Reader:
    """Batches 0 to n - 1, one tensor each; which were read, and whether the reader was closed."""

    def __init__(self, n: int, fails_at: int | None = None) -> None:
        self.read: list[int] = []
        self.closed = False
        self._n, self._fails_at = n, fails_at

    def batches(self) -> Generator[Any]:
        try:
            for number in range(self._n):
                if number == self._fails_at:
                    raise OSError("the disk is gone")
                self.read.append(number)
                yield (torch.tensor(number), None)
        finally:
            self.closed = True


class Plain:
    """Sends nothing anywhere, but notes what was asked of it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def send(self, parts: Any) -> Any:
        self.events.append(("sent", int(parts[0])))
        return parts

    def receive(self, sent: Any) -> Any:
        self.events.append(("received", int(sent[0])))
        return sent


class Through:
    """Sends nothing anywhere."""

    def send(self, parts: Any) -> Any:
        return parts

    def receive(self, sent: Any) -> Any:
        return sent


def test_each_batch_is_sent_before_the_one_in_front_of_it_is_used() -> None:
    reader, sender = Reader(3), Plain()
    used = []
    for value, _ in one_ahead(reader.batches(), sender):
        sender.events.append(("used", int(value)))
        used.append(int(value))
    assert used == [0, 1, 2]
    assert sender.events == [
        ("sent", 0),
        *(("sent", 1), ("received", 0), ("used", 0)),
        *(("sent", 2), ("received", 1), ("used", 1)),
        *(("received", 2), ("used", 2)),
    ]


@pytest.mark.parametrize("n", [0, 1])
def test_few_batches(n: int) -> None:
    assert len(list(one_ahead(Reader(n).batches(), Plain()))) == n


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_what_reading_raises_comes_in_its_place(fails_at: int) -> None:
    used = []
    with pytest.raises(OSError, match="the disk is gone"):
        for value, _ in one_ahead(Reader(5, fails_at).batches(), Plain()):
            used.append(int(value))
    assert used == list(range(fails_at))


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_run_that_stops_early_closes_its_reader(taken: int) -> None:
    reader = Reader(9)
    ahead = one_ahead(reader.batches(), Plain())
    assert len(list(itertools.islice(ahead, taken))) == taken
    assert reader.read == list(range(taken + 1 if taken else 0))
    ahead.close()  # type: ignore[attr-defined]
    assert reader.closed == (taken > 0), "what was never started has nothing to close"


def test_on_a_cpu_nothing_is_copied_and_nothing_read_ahead() -> None:
    reader = Reader(3)
    kept = list(Reader(3).batches())
    found = to_device((parts for parts in kept), CPU)
    assert [parts[0] for parts in found] == [parts[0] for parts in kept]
    assert all(a[0] is b[0] for a, b in zip(to_device((p for p in kept), CPU), kept, strict=True))
    next(to_device(reader.batches(), CPU))
    assert reader.read == [0]


class FakeTensor:
    """A tensor that notes in a common list what is done to it."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def pin_memory(self) -> FakeTensor:
        self.events.append(f"pin {self.name}")
        return FakeTensor(f"pinned {self.name}", self.events)

    def to(self, device: torch.device, non_blocking: bool = False) -> FakeTensor:
        assert device == GPU
        how = "queue the copy of" if non_blocking else "wait for the copy of"
        self.events.append(f"{how} {self.name} on the {FakeCuda.current} stream")
        return FakeTensor(self.name.removeprefix("pinned "), self.events)

    def record_stream(self, stream: str) -> None:
        self.events.append(f"keep {self.name} for the {stream}")


class FakeCuda:
    """What stands in for torch.cuda's streams."""

    current = "current"

    def __init__(self, events: list[str]) -> None:
        self._events = events
        self._marks = itertools.count()

    def Stream(self, device: torch.device) -> FakeCuda:
        return self

    def record_event(self) -> str:
        mark = f"mark {next(self._marks)}"
        self._events.append(f"set {mark}")
        return mark

    @contextlib.contextmanager
    def stream(self, stream: FakeCuda) -> Iterator[None]:
        FakeCuda.current = "side"
        yield
        FakeCuda.current = "current"

    def current_stream(self, device: torch.device) -> Any:
        events = self._events

        class Current(str):
            def wait_event(self, mark: str) -> None:
                events.append(f"{self} waits for {mark}")

        return Current(f"{FakeCuda.current} stream")


def test_the_order_of_copies_marks_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    cuda = FakeCuda(events)
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    batches: Any = ((FakeTensor(name, events), None) for name in ("a", "b"))
    for parts in to_device(batches, GPU):
        events.append(f"use {parts[0].name}")  # type: ignore[union-attr]
        assert parts[1] is None
    sends = {
        name: [
            f"pin {name}",
            f"queue the copy of pinned {name} on the side stream",
            f"set mark {number}",
        ]
        for number, name in enumerate("ab")
    }
    uses = {
        name: [
            f"current stream waits for mark {number}",
            f"keep {name} for the current stream",
            f"use {name}",
        ]
        for number, name in enumerate("ab")
    }
    assert events == [*sends["a"], *sends["b"], *uses["a"], *uses["b"]]


@pytest.mark.parametrize("aug", ["none", "digits"])
def test_batches_are_the_same_with_and_without_looking_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aug: str
) -> None:
    """Also from any step on: augmentation keeps its step, whatever was read ahead of it."""
    data = make_job(tiny_config(tmp_path, aug=aug))[0].data

    def batches(start: int) -> list[Any]:
        options = {"stop": 6, "batch_size": 8, "seed": 3, "device": CPU, "with_target": True}
        return list(training_batches(data, start=start, **options))  # type: ignore[arg-type]

    plain = batches(0)
    monkeypatch.setattr(
        "daptkit.train.domains.to_device", lambda b, device: one_ahead(b, Through())
    )
    for start in (0, 4):
        for found, expected in zip(batches(start), plain[start:], strict=True):
            for one, other in zip(found, expected, strict=True):
                for part in ("inputs", "rows", "groups"):
                    assert torch.equal(getattr(one, part), getattr(other, part))
            assert torch.equal(found[0].labels, expected[0].labels)
            assert found[1].labels is None
