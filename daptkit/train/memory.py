"""What becomes of a step that runs out of memory: fewer images at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from daptkit.errors import DaptkitError
from daptkit.train.accumulate import Accumulator
from daptkit.train.domains import DomainInputs
from daptkit.train.guard import is_out_of_memory
from daptkit.train.job import Job
from daptkit.train.step import StepResult
from daptkit.train.update import Updater


class MemoryFit:
    """Passes batches, in more parts where memory runs out and ``--auto-batch`` is given.

    The step that ran out is begun again in twice as many parts, or the next number that divides
    the batch, until two parts fit: gradients take memory from the second part on. Buffers, such as
    BatchNorm's statistics, are put back first, so the run is the one that ``--grad-accum-steps``
    makes from that step on. Without ``--auto-batch``, and where nothing fits, the run ends with
    what was found. A process that shares a batch with others lets the error pass, since they wait
    for it.

    Args:
        job: the job.
        updater: knows the number of parts, and is told of another.
        told: called with a line for the user and the number of parts when it changes.
    """

    def __init__(self, job: Job, updater: Updater, told: Callable[[str, int], None]) -> None:
        self._accumulator = Accumulator(job, updater)
        self._updater = updater
        self._told = told
        self._batch = job.config.batch_size
        self._automatic = job.config.auto_batch
        self._alone = job.world.size == 1
        self._kept: list[torch.Tensor] = []

    def run(
        self,
        module: nn.Module,
        source: DomainInputs,
        target: DomainInputs | None,
        *,
        step: int,
        **context: Any,
    ) -> StepResult:
        """Pass one batch; see :meth:`daptkit.train.accumulate.Accumulator.run`.

        Raises:
            DaptkitError: memory ran out, and ``--auto-batch`` is not given or does not help; the
                number of images that fits is named.
        """
        if self._automatic:
            self._keep(module)
        passed = self._tried(module, source, target, step=step, **context)
        if passed is not None:
            return passed
        before = self._updater.parts
        fits = self._search(module, source, target, step=step, **context)
        if fits is None:
            raise DaptkitError(
                f"out of memory at step {step}, and no smaller number of images at a time could be"
                " trained on; try a smaller --img-size or --model, or --finetune frozen."
            )
        size = self._batch // fits
        if not self._automatic:
            raise DaptkitError(
                f"out of memory at step {step}: {self._batch // before} images of each domain at a"
                f" time do not fit, {size} do. Use --auto-batch or --grad-accum-steps {fits}, which"
                f" pass a batch in parts, or --batch-size {size}."
            )
        self._told(
            f"out of memory at step {step}: from here on a batch of {self._batch} is passed in"
            f" {fits} parts of {size} images, as by --grad-accum-steps {fits}",
            fits,
        )
        return self.run(module, source, target, step=step, **context)

    def _search(self, module: nn.Module, *batch: Any, **context: Any) -> int | None:
        """Return the smallest number of parts, at least doubling, of which two fit."""
        for parts in range(2, self._batch + 1):
            if self._batch % parts or parts < 2 * self._updater.parts:
                continue
            self._updater.parts = parts
            try:
                fits = self._tried(module, *batch, only=2, **context) is not None
            except DaptkitError:  # Such as BatchNorm's, which has nothing to normalise by.
                return None
            self._put_back(module)
            if fits:
                return parts
        return None

    def _tried(self, module: nn.Module, *batch: Any, **context: Any) -> StepResult | None:
        """Pass a batch, or its first parts; return ``None`` where memory does not suffice."""
        try:
            return self._accumulator.run(module, *batch, **context)
        except (RuntimeError, MemoryError) as error:
            if not (self._alone and is_out_of_memory(error)):
                raise
        # Not before here: the exception holds the frames, and so the tensors, of the step.
        self._updater.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._put_back(module)
        return None

    def _keep(self, module: nn.Module) -> None:
        self._kept = [buffer.clone() for buffer in module.buffers()]

    def _put_back(self, module: nn.Module) -> None:
        for kept, buffer in zip(self._kept, module.buffers(), strict=self._automatic):
            buffer.copy_(kept)
