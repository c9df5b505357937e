"""What plugins of the group ``daptkit.events`` hear of a run; hearing it changes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from daptkit.config import AdaptConfig
from daptkit.host import LoadedMethod, emit_event
from daptkit.plugin import Event, build_options
from daptkit.run import RunFolder
from daptkit.train.job import Job

# Texts that are told beside those with a fixed set of choices; a path is never among them.
_TEXTS = frozenset({"method", "model"})
_FIGURES = ("source_validation", "forgotten", "divergence", "prior")


def tell(event: Event, job: Job | None = None) -> None:
    """Tell the installed listeners of an event; neither a fault nor a draw of theirs is felt.

    Args:
        event: what happened.
        job: adds which model it is about and the run's folder.
    """
    if job is not None:
        event = dataclasses.replace(event, phase=job.label, folder=job.config.out)
    event = dataclasses.replace(
        event,
        values=MappingProxyType(dict(event.values)),
        text=MappingProxyType(dict(event.text)),
    )
    with _state_kept():
        emit_event(event)


def run_started(config: AdaptConfig, methods: Sequence[LoadedMethod]) -> None:
    """Tell the options of a run: numbers, switches and choices; no path and no free text."""
    values, texts = _options(config)
    for method in methods:
        given = config.method_options.get(method.spec.name, {})
        made: Any = build_options(method.spec.options, given)
        more = _options(made, f"{method.spec.name}.")
        values |= more[0]
        texts |= more[1]
    tell(Event(kind="run_start", step=0, values=values, text=texts, folder=config.out))


def run_ended(config: AdaptConfig, record: Mapping[str, Any]) -> None:
    """Tell the figures and the verdict of a run that is written.

    Args:
        config: options.
        record: what ``run.json`` holds.
    """
    values: dict[str, float] = {}
    for name in _FIGURES:
        values |= _numbers(record["figures"].get(name), name)
    verdict = record["verdict"]
    texts = {}
    if verdict is not None:
        names = ("estimated_differences", "heads_kappa", "stability", "changed")
        for name in names:
            values |= _numbers(verdict.get(name), f"verdict/{name}")
        texts = {
            "verdict": str(verdict["verdict"]),
            "delivered": str(verdict["delivered"]),
            "shift": str(verdict["shift"]["kind"]),
            "reasons": "\n".join(verdict["reasons"]),
        }
    tell(Event(kind="run_end", step=0, values=values, text=texts, folder=config.out))


def run_reported(folder: RunFolder) -> None:
    """Tell the files of the report of a run."""
    files = [folder.report, folder.report_data, folder.embedding, *folder.figures.glob("*.svg")]
    names = sorted(file.relative_to(folder.root).as_posix() for file in files if file.is_file())
    tell(Event(kind="report", step=0, files=tuple(names), folder=str(folder.root)))


def _options(options: Any, prefix: str = "") -> tuple[dict[str, float], dict[str, str]]:
    """Return the numbers and the harmless texts among the fields of a dataclass of options."""
    values: dict[str, float] = {}
    texts: dict[str, str] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, (bool, int, float)):
            values[prefix + field.name] = float(value)
        elif isinstance(value, str) and (
            field.metadata.get("choices") or (not prefix and field.name in _TEXTS)
        ):
            # A plugin's model is named, not where it lies.
            texts[prefix + field.name] = Path(value).name
    return values, texts


def _numbers(value: Any, name: str) -> dict[str, float]:
    """Return the finite numbers of nested mappings, by their names joined with '/'."""
    if isinstance(value, Mapping):
        found: dict[str, float] = {}
        for key, inner in value.items():
            found |= _numbers(inner, f"{name}/{key}")
        return found
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return {name: float(value)}
    return {}


@contextlib.contextmanager
def _state_kept() -> Iterator[None]:
    """Give what a run depends on in this process back as it was: random numbers, gradient mode."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = [torch.cuda.current_device()] if used else []
    drawn, drawn_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - others draw
    gradients = torch.is_grad_enabled()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(drawn)
            np.random.set_state(drawn_numpy)  # noqa: NPY002
            torch.set_grad_enabled(gradients)
