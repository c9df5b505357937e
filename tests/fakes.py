"""Small tasks and in-process methods for tests of the trainer; no plugin is installed for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from daptkit.config import AdaptConfig
from daptkit.host import LoadedMethod
from daptkit.method import Method
from daptkit.plugin import MethodSpec, NoOptions
from daptkit.run import RunFolder
from daptkit.testing.trainer import EDGE
from daptkit.testing.trainer import draw_shapes as drawn
from daptkit.testing.trainer import write_site as write_npz
from daptkit.train.device import Precision, resolve_device
from daptkit.train.job import Job
from daptkit.train.jobs import JobMaker
from daptkit.train.network import network_source
from daptkit.train.prepare import prepare
from daptkit.train.progress import SilentReporter

CLASSES = ("bar", "cross", "dot")

__all__ = [
    "CLASSES",
    "EDGE",
    "drawn",
    "in_process",
    "make_job",
    "method_of",
    "tiny_config",
    "write_npz",
    "write_weights",
]


def tiny_config(folder: Path, **values: Any) -> AdaptConfig:
    """Return a run of 50 steps on drawn shapes that takes well under a second to train."""
    folder.mkdir(parents=True, exist_ok=True)
    source, target = folder / "source.npz", folder / "target.npz"
    if not source.exists():
        write_npz(source, seed=1)
        write_npz(target, seed=2, contrast=0.6)
    given = {
        "source": (str(source),),
        "target": str(target),
        "out": str(folder / "run"),
        "model": "daptkit_lenet",
        "img_size": EDGE,
        "bottleneck": 16,
        "epochs": 1,
        "batch_size": 8,
        "aug": "none",
        "log_interval": 10,
        "device": "cpu",
        "report": False,
    }
    return AdaptConfig(**{**given, **values})


def write_weights(folder: Path, model: str = "test_resnet") -> dict[str, Any]:
    """Write drawn weights of a backbone; return the options that start :func:`tiny_config` there.

    Unlike the default network's, this backbone has BatchNorm and five stages.
    """
    path = folder / f"{model}.pth"
    options = {"model": model, "pretrained_path": str(path)}
    if not path.exists():
        scratch = tiny_config(folder, **{**options, "pretrained_path": None}, in_chans=1)
        backbone = network_source(scratch, CLASSES).template.backbone
        torch.save(backbone.state_dict(), path)
    return options


def in_process(factory: type[Method], name: str = "fake", **spec: Any) -> LoadedMethod:
    """Return a loaded method whose class is given instead of imported."""

    class Loaded(LoadedMethod):
        def load_factory(self) -> type[Method]:
            return factory

    made = MethodSpec(name=name, summary="", factory="tests:fake", options=NoOptions, **spec)
    return Loaded(spec=made, package="daptkit-fake", version="1.2")


def make_job(
    config: AdaptConfig, *methods: LoadedMethod, out: Path | None = None
) -> tuple[Job, JobMaker]:
    """Prepare a run and make its job, on the CPU unless the configuration names a device."""
    precision = Precision(resolve_device(config.device), enabled=config.amp, dtype=config.amp_dtype)
    config = replace(config, method="+".join(m.spec.name for m in methods) or "none")
    taps = (tap for method in methods for tap in method.load_factory().layers)
    layers = tuple(dict.fromkeys(("features", "logits", *taps)))
    maker = JobMaker(
        prepared=prepare(config, precision.device, SilentReporter(), layers),
        config=config,
        precision=precision,
        reporter=SilentReporter(),
        methods=tuple(methods),
    )
    return maker.make(maker.prepared.data, RunFolder(out or Path(config.out))), maker


Losses = Callable[..., dict[str, Any]]


def method_of(losses: Losses) -> type[Method]:
    """Return a method class with the given ``losses(self, source, target, ctx)``."""

    class Fake(Method):
        def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
            return losses(self, source, target, ctx)

    return Fake
