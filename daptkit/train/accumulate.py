"""A batch in equal parts, one after the other, whose gradients add up."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from daptkit.errors import UsageError
from daptkit.train.device import derive_seed, seed_default_generators
from daptkit.train.domains import DomainInputs
from daptkit.train.job import Job
from daptkit.train.step import Part, StepResult
from daptkit.train.update import Updater


def check_parts(batch_size: int, parts: int, processes: int = 1) -> None:
    """Check that a batch can be passed in so many equal parts.

    Args:
        batch_size: images per domain of a step, a multiple of ``processes``.
        parts: ``--grad-accum-steps``.
        processes: processes that share each part equally.

    Raises:
        UsageError: it cannot; the values around it that would do are named.
    """
    share = batch_size // processes
    if share % parts == 0:
        return
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    near = [*[n for n in divisors if n < parts][-1:], *[n for n in divisors if n > parts][:1]]
    unit = parts * processes
    whole = batch_size // unit * unit
    sizes = [n for n in (whole, whole + unit) if n]
    shared = f" for {processes} processes" if processes > 1 else ""
    raise UsageError(
        f"--grad-accum-steps {parts} does not split {batch_size} images into equal parts{shared};"
        f" use --grad-accum-steps {' or '.join(map(str, near))}, or --batch-size"
        f" {' or '.join(map(str, sizes))}."
    )


class Accumulator:
    """Passes batches through the step, each in the updater's number of parts.

    The classification losses of the parts sum to that of the whole batch, so its gradient is the
    same. Losses of methods are averaged over the parts: a loss that is no mean over images, as
    MMD or CORAL, is another one on fewer images. BatchNorm normalises each part by itself.

    Args:
        job: the job.
        updater: gathers the gradient and knows the number of parts.
    """

    def __init__(self, job: Job, updater: Updater) -> None:
        self._precision = job.precision
        self._seed = job.config.seed
        self._world = job.world
        self._updater = updater

    def run(
        self,
        module: nn.Module,
        source: DomainInputs,
        target: DomainInputs | None,
        *,
        step: int,
        generator: torch.Generator,
        only: int | None = None,
        **context: Any,
    ) -> StepResult:
        """Pass one batch, and leave the gradient of its losses to the updater.

        Args:
            module: a :class:`daptkit.train.step.Step`, or what wraps it for several processes.
            source: the whole batch of this process.
            target: likewise, or ``None``.
            step: number of the step, from 0.
            generator: what methods draw from.
            only: so many parts at most, to see whether they fit into memory.
            context: further arguments of the module.

        Returns:
            Losses of the whole batch, and the means over the parts of what was logged.
        """
        self._updater.clear()
        of = self._updater.parts
        results = []
        for number in range(of if only is None else min(only, of)):
            # Dropout and methods draw from streams that depend on seed, step and part alone, so a
            # resumed run continues bit for bit. Processes must not drop the same units of different
            # images, but methods must draw the same, since each computes the losses of the whole.
            part = (number,) if number else ()
            own = number * self._world.size + self._world.rank
            apart = derive_seed(self._seed, step, 2, *((own,) if own else ()))
            seed_default_generators(self._precision.device, apart)
            generator.manual_seed(derive_seed(self._seed, step, 3, *part))
            # Processes that share a batch average the gradient once, after the last part.
            with contextlib.nullcontext() if number == of - 1 else _by_itself(module):
                with self._precision.autocast():
                    result = module(
                        source if of == 1 else _part(source, number, of),
                        target if of == 1 or target is None else _part(target, number, of),
                        part=None if of == 1 else Part(of, source.labels),
                        step=step,
                        generator=generator,
                        **context,
                    )
                self._updater.backward(result, step)
            results.append(result.detached())
        return _joined(results)


def _by_itself(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Keep a wrapper for several processes from averaging the gradient."""
    hold: Any = getattr(module, "no_sync", contextlib.nullcontext)
    held: contextlib.AbstractContextManager[None] = hold()
    return held


def _part(whole: DomainInputs, number: int, of: int) -> DomainInputs:
    size = len(whole.inputs) // of
    rows = slice(number * size, (number + 1) * size)
    return DomainInputs(
        inputs=whole.inputs[rows],
        rows=whole.rows[rows],
        groups=whole.groups[rows],
        labels=None if whole.labels is None else whole.labels[rows],
    )


def _joined(parts: Sequence[StepResult]) -> StepResult:
    if len(parts) == 1:
        return parts[0]
    losses = {name: torch.stack(found).sum() for name, found in _by_name(parts, "losses").items()}
    logs = {name: torch.stack(found).mean() for name, found in _by_name(parts, "logs").items()}
    return StepResult(losses, logs)


def _by_name(parts: Sequence[StepResult], what: str) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in getattr(part, what).items():
            found.setdefault(name, []).append(value)
    return found
