"""The host's own trainer on a tiny task: runs of a second, for tests of what only a run shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from daptkit.config import AdaptConfig
from daptkit.host import LoadedMethod, load_methods
from daptkit.method import Method
from daptkit.run import RunFolder
from daptkit.train.adaptation import check_methods
from daptkit.train.device import Precision, resolve_device
from daptkit.train.job import FitResult
from daptkit.train.jobs import JobMaker
from daptkit.train.loop import Trainer
from daptkit.train.prepare import prepare
from daptkit.train.progress import SilentReporter

EDGE = 16


class Interrupted(Exception):
    """A run that was asked to end early has ended."""


@dataclass(frozen=True)
class Fitted:
    """What a tiny run leaves.

    Args:
        weights: state of the model.
        methods: the methods by name, as they are at the end.
        metrics: content of ``metrics.jsonl``.
        result: class weights, prior, reports and notes.
    """

    weights: dict[str, Tensor]
    methods: dict[str, Method]
    metrics: bytes
    result: FitResult


class FastTrainer:
    """Trains a LeNet on 16 x 16 images of three shapes, which are fainter at the target.

    Args:
        folder: where images and runs go.
        device: ``"cpu"`` or a GPU.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder = folder
        self.device = device
        folder.mkdir(parents=True, exist_ok=True)
        self.source = write_site(folder / "source.npz", seed=1)
        self.target = write_site(folder / "target.npz", seed=2, contrast=0.6)

    def fit(
        self,
        *methods: LoadedMethod | str,
        run: str = "run",
        stop_at: int | None = None,
        **options: Any,
    ) -> Fitted:
        """Train, or continue the run of that name from its last checkpoint.

        Args:
            methods: methods of the run, or names of installed ones.
            run: its name.
            stop_at: step at which to end it as a crash would.
            options: further options of ``adapt``, as :class:`daptkit.config.AdaptConfig` has them.

        Raises:
            Interrupted: ``stop_at`` is reached.
            UsageError: this host does not offer what a method asks for.
        """
        loaded = [m if isinstance(m, LoadedMethod) else load_methods([m])[0] for m in methods]
        config = self._config(run, loaded, options)
        check_methods(loaded, config)
        device = resolve_device(config.device)
        layers = {tap: None for m in loaded for tap in m.load_factory().layers}
        precision = Precision(device, enabled=config.amp, dtype=config.amp_dtype)
        maker = JobMaker(
            prepared=prepare(
                config,
                precision.device,
                SilentReporter(),
                tuple({"features": None, "logits": None, **layers}),
            ),
            config=config,
            precision=precision,
            reporter=SilentReporter() if stop_at is None else _Ending(stop_at),
            methods=tuple(loaded),
        )
        folder = RunFolder(Path(config.out))
        job = replace(maker.make(maker.prepared.data, folder), events=False)
        result = Trainer(job).run()
        return Fitted(
            weights={name: x.detach().cpu() for name, x in job.net.state_dict().items()},
            methods=dict(job.methods),
            metrics=folder.metrics.read_bytes(),
            result=result,
        )

    def _config(
        self, run: str, methods: Sequence[LoadedMethod], options: dict[str, Any]
    ) -> AdaptConfig:
        given: dict[str, Any] = {
            "source": (str(self.source),),
            "target": str(self.target),
            "out": str(self.folder / run),
            "method": "+".join(m.spec.name for m in methods) or "none",
            "model": "daptkit_lenet",
            "img_size": EDGE,
            "bottleneck": 16,
            "epochs": 1,
            "batch_size": 8,
            "aug": "none",
            "log_interval": 10,
            "device": self.device,
            "report": False,
            "cache": "off",
        }
        return AdaptConfig(**{**given, **options})


class _Ending(SilentReporter):
    """Ends a run at a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def advance(self, step: int) -> None:
        if step == self._step:
            raise Interrupted

    def update(self, step: int, values: Any) -> None:
        self.advance(step)


def draw_shapes(
    n: int, seed: int, *, contrast: float = 1.0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return noisy images of a bar, a cross or a dot, (n, 16, 16), and their classes (n,).

    Args:
        n: images.
        seed: of the images.
        contrast: of the shapes.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    images = rng.normal(40, 12, (n, EDGE, EDGE))
    for image, label in zip(images, labels, strict=True):
        row, column = rng.integers(5, 11, 2)
        if label in (0, 1):
            image[row - 1 : row + 1, 2:14] += 130 * contrast
        if label == 1:
            image[2:14, column - 1 : column + 1] += 130 * contrast
        if label == 2:
            image[row - 2 : row + 2, column - 2 : column + 2] += 130 * contrast
    return images.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def write_site(path: Path, *, n: int = 90, seed: int = 0, contrast: float = 1.0) -> Path:
    """Write a site of :func:`draw_shapes` as a MedMNIST-style file of train, val and test.

    Args:
        path: the ``.npz``.
        n: images of train; the others have a third of them.
        seed: of the images.
        contrast: of the shapes, 1 for the source's.
    """
    parts: dict[str, Any] = {}
    for offset, (split, share) in enumerate((("train", n), ("val", n // 3), ("test", n // 3))):
        images, labels = draw_shapes(share, seed * 10 + offset, contrast=contrast)
        parts[f"{split}_images"], parts[f"{split}_labels"] = images, labels
    np.savez(path, **parts)
    return path


def differing(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Return the names under which two states differ by a bit or more."""
    return [name for name, value in first.items() if not torch.equal(value, second[name])]
