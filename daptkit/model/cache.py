"""Pooled features of a frozen backbone, kept on disk so that they are computed once."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from daptkit.errors import DaptkitError
from daptkit.model.network import AdaptNet, backbone_fingerprint, evaluating
from daptkit.run import atomic_write

T = TypeVar("T")

FORMAT = 1
"""Raised when the meaning of an entry changes, so that older entries are not read."""

Progress = Callable[[int, int], None]
"""Called with the number of images done and the number of all images."""


REQUIRED_PARTS = frozenset({"data", "conversion"})
"""Key parts that the cache cannot work out itself, and without which entries would be mixed up."""


class Images(Protocol):
    """A set of images that yields batches of them."""

    def __len__(self) -> int: ...

    def prefetch(self, batches: Iterable[npt.NDArray[np.int64]], /) -> Iterator[Tensor]:
        """Yield the images (N, C, H, W) of each array of row numbers."""


class Share(Protocol):
    """Processes that compute features together; each of them makes the same calls."""

    def first(self, run: Callable[[], T]) -> T:
        """Run on one of them; what it returns, or raises, comes to all."""

    def own(self, parts: Sequence[T]) -> Sequence[T]:
        """Return the consecutive parts that are this process' own."""

    def joined(self, own: Mapping[str, Tensor], sizes: Sequence[int]) -> dict[str, Tensor]:
        """Put the rows of all processes' parts together; ``sizes`` are those of all parts."""


class FeatureCache:
    """Trunk features (N, D') by weights, preprocessing, data and device.

    An entry holds numbers and hashes alone: no path and no name of an image. Writers may race:
    each writes its own file and renames it, and both hold the same features.

    Args:
        root: folder of the entries, made when first needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.hits = 0
        self.misses = 0
        self.corrupted = 0

    def trunk_features(
        self,
        net: AdaptNet,
        images: Images,
        *,
        key_parts: Mapping[str, Any],
        device: torch.device | str,
        batch_size: int,
        progress: Progress | None = None,
        share: Share | None = None,
    ) -> Tensor:
        """Return the pooled features of all images, float32 on the CPU, from disk if there.

        Args:
            net: network; its backbone is run in eval mode, on ``device``.
            images: the image set, in the order of its table.
            key_parts: JSON values that the features depend on beyond weights and model:
                ``"data"`` (fingerprint of the images and their order), ``"conversion"``, and
                whatever else changes the input, such as the alignment of the images.
            device: where the backbone runs.
            batch_size: images a forward pass.
            progress: told how many images are done, of those that are this process' own.
            share: processes that share the forwards; one of them reads and writes the entry.

        Returns:
            (N, D') float32.

        Raises:
            DaptkitError: the cache folder cannot be written.
            ValueError: ``key_parts`` lacks a required part.
        """
        path = self.root / f"{feature_key(net, key_parts, device)}.safetensors"
        shape = (len(images), net.trunk_dim)
        first = _alone if share is None else share.first
        stored = first(lambda: self._read(path, shape))
        if stored is not None:
            self.hits += 1
            return stored
        self.misses += 1
        first(self._check_writable)
        features = _compute(net, images, shape, torch.device(device), batch_size, progress, share)
        first(lambda: self._write(path, features))
        return features

    def _read(self, path: Path, shape: tuple[int, int]) -> Tensor | None:
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                digest = (file.metadata() or {}).get("sha256")
                features: Tensor = file.get_tensor("features")
        except (SafetensorError, OSError, ValueError, KeyError):
            self.corrupted += 1
            return None
        if (
            features.dtype != torch.float32
            or features.shape != shape
            or _digest(features) != digest
        ):
            self.corrupted += 1
            return None
        return features

    def _check_writable(self) -> None:
        """Fail before the long computation and not after it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from error

    def _write(self, path: Path, features: Tensor) -> None:
        content = save({"features": features}, metadata={"sha256": _digest(features)})
        try:
            atomic_write(path, content)
        except DaptkitError as error:
            raise self._unwritable(str(error)) from error

    def _unwritable(self, reason: str) -> DaptkitError:
        return DaptkitError(
            f"the feature cache {self.root} cannot be written ({reason.rstrip('.')}). Free space "
            "there, or name another folder in the environment variable DAPTKIT_CACHE."
        )


def feature_key(net: AdaptNet, key_parts: Mapping[str, Any], device: torch.device | str) -> str:
    """Return the sha256 of everything that the features depend on.

    Raises:
        ValueError: ``key_parts`` lacks a required part.
    """
    if absent := REQUIRED_PARTS - set(key_parts):
        raise ValueError(f"key_parts lacks {', '.join(sorted(absent))}")
    parts = {
        "format": FORMAT,
        "weights": backbone_fingerprint(net),
        "model": net.config.trunk_json(),
        "parts": dict(key_parts),
        "dtype": "float32",
        # Kernels differ in the last digits, and a repeated run must give the same numbers.
        "device": torch.device(device).type,
        "versions": [torch.__version__, timm.__version__],
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _compute(
    net: AdaptNet,
    images: Images,
    shape: tuple[int, int],
    device: torch.device,
    batch_size: int,
    progress: Progress | None,
    share: Share | None,
) -> Tensor:
    starts = range(0, shape[0], batch_size)
    batches = [np.arange(s, min(s + batch_size, shape[0]), dtype=np.int64) for s in starts]
    mine = batches if share is None else share.own(batches)
    total = sum(map(len, mine))
    features = torch.empty((total, shape[1]), dtype=torch.float32)  # (N, D')
    net.to(device)
    done = 0
    with torch.no_grad(), evaluating(net):
        for batch in images.prefetch(iter(mine)):
            features[done : done + len(batch)] = net.trunk(batch.to(device)).float().cpu()
            done += len(batch)
            if progress is not None:
                progress(done, total)
    if done != total:
        raise RuntimeError(f"the image set gave {done} of its {total} images")
    if share is None:
        return features
    return share.joined({"": features} if total else {}, [len(rows) for rows in batches])[""]


def _alone(run: Callable[[], T]) -> T:
    return run()


def _digest(features: Tensor) -> str:
    return hashlib.sha256(features.contiguous().numpy().data).hexdigest()
