"""UMAP off the critical path: a child process that warms up while the model trains."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

from daptkit.report.embedding import (
    MIN_FOR_UMAP,
    Floats,
    Projection,
    by_pca,
    points_shown,
    why_not_umap,
)
from daptkit.train.prepare import Prepared

PANEL_LIMIT = 180.0
"""Seconds that one panel may take once everything else of the report is measured."""

_END_LIMIT = 10.0
_LONGEST_STATUS = 1000
_SCRIPT = Path(__file__).with_name("umap_child.py")
_NO_MODULE = ("ModuleNotFoundError", "ImportError")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class EmbeddingFault(Exception):
    """Why there is no UMAP, in one sentence."""


class Embedder:
    """Computes embeddings in a child process; a context manager, which ends the child.

    The child is started by :meth:`warm_up` or by the first :meth:`embed`. Whatever becomes of it,
    a projection comes back: PCA, with the reason, where UMAP is missing, fails or takes too long.

    Args:
        limit: seconds that the result of one panel is waited for.
        command: what to run instead of :mod:`daptkit.report.umap_child`.
    """

    def __init__(self, *, limit: float = PANEL_LIMIT, command: Sequence[str] | None = None) -> None:
        self._limit = limit
        self._command = tuple(command or _child_command())
        self._child: _Child | None = None

    def __enter__(self) -> Embedder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def started(self) -> bool:
        """Whether there is a child process."""
        return self._child is not None

    def warm_up(self, prepared: Prepared) -> None:
        """Start the child if enough images will be shown for UMAP; returns at once."""
        if points_shown(prepared.data) >= MIN_FOR_UMAP:
            self._start()

    def embed(self, panels: Sequence[Floats], seed: int) -> PendingProjection:
        """Ask for every panel of features (N, D); returns at once.

        Args:
            panels: features of the same images, one array a model.
            seed: of UMAP.
        """
        why = why_not_umap(panels)
        if why is not None:
            return PendingProjection(panels=tuple(panels), why_pca=why, limit=self._limit)
        try:
            child = self._start()
        except OSError as error:
            why = f"The process for UMAP did not start ({type(error).__name__})."
            return PendingProjection(panels=tuple(panels), why_pca=why, limit=self._limit)
        asked = tuple(child.ask(panel, seed) for panel in panels)
        return PendingProjection(panels=tuple(panels), asked=asked, child=child, limit=self._limit)

    def close(self) -> None:
        """End the child, whatever it is doing."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def _start(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._command)
        return self._child


@dataclass(frozen=True, kw_only=True)
class PendingProjection:
    """A projection that may still be computed.

    Args:
        panels: the features.
        limit: seconds that the result of one panel is waited for.
        why_pca: why UMAP was not asked; ``None`` where it was.
        asked: coordinates to come, one a panel.
        child: the process that computes them.
    """

    panels: tuple[Floats, ...]
    limit: float
    why_pca: str | None = None
    asked: tuple[Future[Floats], ...] = ()
    child: _Child | None = None

    def result(self) -> Projection:
        """Wait, within the limit, and return the coordinates; never raises for UMAP's faults."""
        if self.why_pca is not None:
            return by_pca(self.panels, self.why_pca)
        try:
            found = tuple(future.result(timeout=self.limit) for future in self.asked)
        except TimeoutError:
            why = f"UMAP took longer than {self.limit:g} s."
        except EmbeddingFault as fault:
            why = str(fault)
        else:
            return Projection(panels=found, kind="umap", why_pca=None)
        if self.child is not None:
            self.child.close()
        # Panels are compared by eye, so one kind serves all of them.
        return by_pca(self.panels, why)


class _Child:
    """One process of the child script, and the thread that talks to it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **dict.fromkeys(_THREADS, "1")},
            # A group of its own, so that whatever it starts ends with it.
            start_new_session=True,
        )
        self._ready = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")

    def ask(self, features: Floats, seed: int) -> Future[Floats]:
        """Queue one panel (N, D); its coordinates are (N, 2)."""
        return self._thread.submit(self._talk, features.astype(np.float32), seed)

    def close(self) -> None:
        """End the process; the thread then finds its pipes closed and ends as well."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._thread.shutdown()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what a dead child did not read stays unsent
                pipe.close()

    def _talk(self, features: npt.NDArray[np.float32], seed: int) -> Floats:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        if not self._ready:
            self._read_status(answers)
            self._ready = True
        header = json.dumps({"shape": features.shape, "seed": seed}).encode() + b"\n"
        with contextlib.suppress(OSError):  # a dead child is told by its missing answer
            requests.write(header + np.ascontiguousarray(features).tobytes())
            requests.flush()
        self._read_status(answers)
        content = answers.read(8 * len(features))
        if len(content) < 8 * len(features):
            raise EmbeddingFault(f"The process for UMAP ended ({self._ending()}).")
        found = np.frombuffer(content, dtype=np.float32).reshape(len(features), 2)
        if not np.isfinite(found).all():
            raise EmbeddingFault("UMAP gave coordinates that are not finite.")
        return found.astype(np.float64)

    def _read_status(self, answers: IO[bytes]) -> None:
        line = answers.readline(_LONGEST_STATUS)
        if not line:
            raise EmbeddingFault(f"The process for UMAP ended ({self._ending()}).")
        try:
            fault = json.loads(line)["error"]
        except (ValueError, KeyError, TypeError):
            raise EmbeddingFault("The process for UMAP gave no readable answer.") from None
        if fault in _NO_MODULE:
            raise EmbeddingFault("The package umap-learn is not installed, or does not load.")
        if fault is not None:
            raise EmbeddingFault(f"UMAP failed ({fault}).")

    def _ending(self) -> str:
        try:
            code = self._process.wait(timeout=_END_LIMIT)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _child_command() -> list[str]:
    # The child sees the same modules as this process, however its path was put together; run as a
    # file, it does not import this package, which would cost it torch.
    code = (
        f"import runpy, sys; sys.path[:] = {sys.path!r};"
        f" runpy.run_path({str(_SCRIPT)!r}, run_name='__main__')"
    )
    return [sys.executable, "-c", code]
