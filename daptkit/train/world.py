"""The processes of one run: which one this is, and what they agree on."""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from daptkit.errors import DaptkitError, NonFiniteLossError, Terminated, UsageError
from daptkit.train.device import resolve_device

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, and every other launcher for torch, tells a process of its group."""

_PATIENCE = datetime.timedelta(hours=12)
"""How long processes wait for one that reads images or writes; a dead one is noticed at once."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes that train one model together; all of them run the same code in step.

    Every method but the properties must be called by all of them, in the same order.

    Args:
        rank: number of this process; rank 0 alone writes and speaks.
        size: number of processes.
        local_rank: number of this process on its node.
        device_group: works on the tensors of the step; ``None`` for one process.
        host_group: works on tensors of the CPU and on objects.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device_group: dist.ProcessGroup | None = None
    host_group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the device of ``--device`` on this process; see :func:`own_device`."""
        return resolve_device(name) if self.size == 1 else own_device(name, self.local_rank)

    def first(self, run: Callable[[], T]) -> T:
        """Run on rank 0 alone; what it returns, or the error it raises, comes to every process.

        Args:
            run: returns something that can be pickled.

        Raises:
            DaptkitError: ``run`` raised it.
        """
        if self.size == 1:
            return run()
        box: list[Any] = [None]
        if self.leads:
            try:
                box = [run()]
            except DaptkitError as error:
                box = [error]
        dist.broadcast_object_list(box, src=0, group=self.host_group)
        if isinstance(box[0], DaptkitError):
            raise self._told(box[0], by=0)
        result: T = box[0]
        return result

    def same(self, value: T) -> T:
        """Return the value of rank 0: nodes may differ in the last bits of what they compute."""
        return self.first(lambda: value)

    def node_by_node(self, run: Callable[[], T]) -> T:
        """Run on one process of each node, then on the others, which find its caches filled.

        Raises:
            DaptkitError: ``run`` raised it on some process.
        """
        if self.size == 1:
            return run()
        results: list[T] = []
        for turn in (True, False):
            problem = None
            if (self.local_rank == 0) == turn:
                try:
                    results.append(run())
                except DaptkitError as error:
                    problem = error
            for rank, found in enumerate(self.all_of(problem)):
                if found is not None:
                    raise self._told(found, by=rank)
        return results[0]

    def all_of(self, value: T) -> list[T]:
        """Return the value of each process, which must be picklable, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.host_group)
        return found

    def agreed(self, signal: int | None) -> int | None:
        """Return the signal that any process has got, so that all stop after the same step."""
        if self.size == 1:
            return signal
        number = torch.tensor(signal or 0)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self.host_group)
        return int(number) or None

    def own(self, parts: Sequence[T]) -> Sequence[T]:
        """Return the share of this process of what is split among all; it may be empty."""
        start, stop = (len(parts) * rank // self.size for rank in (self.rank, self.rank + 1))
        return parts[start:stop]

    def joined(self, own: Mapping[str, Tensor], sizes: Sequence[int]) -> dict[str, Tensor]:
        """Put the rows of all processes together, in the order of the ranks.

        Args:
            own: (n, ...) on the CPU by name, n the sum of :meth:`own` of ``sizes``; nothing where
                that is 0.
            sizes: number of rows of each part that was split among the processes.

        Returns:
            (sum of ``sizes``, ...) by name.
        """
        if self.size == 1:
            return dict(own)
        shapes = self.all_of({name: (value.shape[1:], value.dtype) for name, value in own.items()})
        described = next(shape for shape in shapes if shape)
        ends = [0, *itertools.accumulate(sizes)]
        bounds = [ends[len(sizes) * rank // self.size] for rank in range(self.size + 1)]
        whole = {}
        for name, (shape, dtype) in described.items():
            whole[name] = torch.empty((ends[-1], *shape), dtype=dtype)
            if own:
                whole[name][bounds[self.rank] : bounds[self.rank + 1]] = own[name]
            for rank, (start, stop) in enumerate(itertools.pairwise(bounds)):
                if stop > start:
                    dist.broadcast(whole[name][start:stop], src=rank, group=self.host_group)
        return whole

    def _told(self, error: DaptkitError, *, by: int) -> DaptkitError:
        error.told_elsewhere = self.rank != by
        return error


ALONE = World()
"""One process by itself."""


@contextlib.contextmanager
def joined_world(device: str) -> Iterator[World]:
    """Join the processes that a launcher such as ``torchrun`` started, for the block.

    Args:
        device: ``--device``; of several processes, each takes the GPU of its number on the node.

    Raises:
        UsageError: the launcher's variables are malformed, a GPU is named for several processes, or
            a node has fewer GPUs than processes.
    """
    if not all(name in os.environ for name in _VARIABLES) or _number("WORLD_SIZE") == 1:
        yield ALONE
        return
    rank, size, local_rank = _number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_RANK", "0")
    own = own_device(device, local_rank)
    # Long waits are for the host; one for a GPU is a fault, and NCCL's own limit is minutes.
    options: dict[str, Any] = {"timeout": _PATIENCE}
    if own.type == "cuda":
        torch.cuda.set_device(own)
        options = {"device_id": own}
    # A process that runs several adaptations joins several times, each time with names of its own.
    store = PrefixStore(f"daptkit-{next(_JOINS)}", _store())
    dist.init_process_group(
        "nccl" if own.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        **options,
    )
    try:
        device_group = dist.group.WORLD
        host_group: Any = device_group
        if own.type == "cuda":
            host_group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        yield World(
            rank=rank,
            size=size,
            local_rank=local_rank,
            device_group=device_group,
            host_group=host_group,
        )
    finally:
        dist.destroy_process_group()


_JOINS = itertools.count()


@functools.cache
def _store() -> Store:
    store: Store = next(rendezvous("env://", timeout=_PATIENCE))[0]
    return store


def _number(name: str, default: str = "") -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise UsageError(
            f"the environment variable {name} is '{text}', not a number; start several processes"
            " by torchrun."
        )
    return int(text)


@contextlib.contextmanager
def spoken_by(world: World) -> Iterator[None]:
    """Mark the errors of the block: whose they are, and who shows them."""
    try:
        yield
    except (NonFiniteLossError, Terminated) as error:
        # They come to every process alike.
        error.told_elsewhere = not world.leads
        raise
    except DaptkitError as error:
        if not (world.leads or error.told_elsewhere):
            error.args = (f"process {world.rank + 1} of {world.size}: {error}",)
        raise


def own_device(name: str, local_rank: int) -> torch.device:
    """Return the device of one of several processes of a node: the GPU of its number, or the CPU.

    Raises:
        UsageError: one GPU is named for all of them, or there are fewer GPUs than processes.
    """
    device = resolve_device(name)
    if device.type == "cpu":
        return device
    if device.index is not None:
        raise UsageError(
            f"--device '{name}' is one GPU for several processes; give --device cuda, and each"
            " takes its own."
        )
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UsageError(
            f"process {local_rank + 1} of this node has no GPU: {count} are visible; start at most"
            f" {count} with --nproc-per-node, or use --device cpu."
        )
    return torch.device("cuda", local_rank)


def check_shared_batch(batch_size: int, processes: int) -> None:
    """Refuse a batch that processes cannot share equally.

    Raises:
        UsageError: the next values that can be are named.
    """
    rest = batch_size % processes
    if rest:
        values = [v for v in (batch_size - rest, batch_size - rest + processes) if v]
        raise UsageError(
            f"--batch-size {batch_size} cannot be shared equally by {processes} processes; give"
            f" {' or '.join(map(str, values))}."
        )
