"""Read tensors from files that may be anything: safetensors, torch pickles, failed downloads."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from daptkit.errors import DataError

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts keep the weights; the averaged ones first, as timm does."""

SAFE_TORCH = Version("2.10")
"""First torch whose ``torch.load(weights_only=True)`` is not known to run code of a file."""

_ZIP = b"PK\x03\x04"

_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,  # torch.load takes safetensors too, by the length of the header
)
"""What torch.load and zipfile raise on bytes that are no checkpoint, or a damaged one."""


@dataclass(frozen=True, kw_only=True)
class WeightsReport:
    """What a file of weights gave.

    Args:
        sha256: of the file.
        matched: tensors of the backbone that were loaded (BatchNorm's counters not counted).
        total: tensors of the backbone.
        unexpected: names in the file that the network has no use for, such as the classifier's.
        missing: names of the backbone that the file lacks or holds in another shape.
    """

    sha256: str
    matched: int
    total: int
    unexpected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """A line on what the file lacks, if it lacks anything."""
        if not self.missing:
            return None
        return (
            f"warning: the weights file lacks {len(self.missing)} of the backbone's {self.total}"
            f" tensors, or has them in another shape; these start from random values:"
            f" {first_names(self.missing)}"
        )


def first_names(names: Sequence[str]) -> str:
    """Return the first three names, and whether there are more."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state_dict(path: Path, *, trust: bool = False) -> dict[str, Tensor]:
    """Read named tensors, without running any code that the file may carry, unless trusted.

    Args:
        path: safetensors, or a torch file that ``torch.load(weights_only=True)`` accepts, with
            the weights at the top or under one of :data:`WRAPPERS`.
        trust: also read a torch file that carries Python objects, whose code runs then, and torch
            files at all under a torch older than :data:`SAFE_TORCH`.

    A torch file's own check sums are verified. Those of today's kind (torch 1.6 and newer) have
    them; older ones, those saved without (``torch.serialization.set_crc32_options(False)``) and
    safetensors have none, so of these flipped bits are found only where they break the structure.

    Raises:
        DataError: missing, empty, truncated, an HTML page, bits that have flipped, a pickle with
            code, or no tensors.
    """
    head = _read_head(path)
    # safetensors: 8 bytes of header length, then the header's opening brace.
    content = _load_safetensors(path) if head[8:9] == b"{" else _load_torch(path, head, trust)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    while isinstance(content, Mapping):
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise DataError(
            f"weights file {path}: holds a {type(content).__name__}, not named tensors. Save "
            "model.state_dict()."
        )
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        raise DataError(f"weights file {path}: holds no tensors. Save model.state_dict().")
    return tensors


def _read_head(path: Path) -> bytes:
    if not path.exists():
        raise DataError(f"weights file {path}: not found.")
    if not path.is_file():
        raise DataError(f"weights file {path}: is a folder, not a file.")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"weights file {path}: cannot be read: {error.strerror}.") from error
    if not head:
        raise DataError(f"weights file {path}: is empty. Download or copy it again.")
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(
            f"weights file {path}: is a web page, not weights; the download probably failed or "
            "asked for a log-in. Download it again."
        )
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"weights file {path}: is a Git LFS pointer. Fetch it with git lfs pull.")
    return head


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"weights file {path}: not readable as safetensors, probably truncated or damaged "
            f"({_first_line(error)}). Download or copy it again."
        ) from error


def _load_torch(path: Path, head: bytes, trust: bool) -> Any:
    if not trust and Version(torch.__version__) < SAFE_TORCH:
        raise DataError(
            f"weights file {path}: torch {torch.__version__} may run code that a torch file "
            f"carries. Update torch to {SAFE_TORCH} or newer, save the weights as safetensors, or "
            "give --trust if you trust their origin."
        )
    try:
        if head.startswith(_ZIP):
            _verify_sums(path)
        # timm's own checkpoints carry their arguments as a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]), _quiet_about_age():
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if not _carries_objects(error):
            raise _damaged(path, error) from error
        if not trust:
            raise DataError(
                f"weights file {path}: refused, it carries Python objects beside tensors and "
                "could run code when loaded. Save its state_dict() as safetensors, or give --trust "
                "if you trust its origin."
            ) from error
    return _load_trusted(path)


def _verify_sums(path: Path) -> None:
    """Read each part of a zip to its end, where zipfile compares its check sum; torch does not.

    Raises:
        BadZipFile: a check sum is wrong; other errors of ``_UNREADABLE`` for other damage.
    """
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.CRC == 0:
                continue  # saved without
            with archive.open(part) as file:
                while file.read(1 << 20):
                    pass


def _load_trusted(path: Path) -> Any:
    try:
        with _quiet_about_age():
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise DataError(
            f"weights file {path}: loading the Python objects that it carries failed "
            f"({type(error).__name__}: {_first_line(error)}). A package that they need may be "
            "missing; or save its state_dict() as safetensors."
        ) from error


@contextlib.contextmanager
def _quiet_about_age() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of an old pickle
        yield


def _carries_objects(error: BaseException) -> bool:
    """Whether torch refused a whole file for what it carries, and not for damage."""
    if isinstance(error, pickle.UnpicklingError):
        return "GLOBAL" in str(error) or "Unsupported" in str(error)
    return isinstance(error, RuntimeError) and "TorchScript archive" in str(error)


def _damaged(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"weights file {path}: not readable as safetensors or as a torch state dict, probably "
        f"truncated, damaged or of another kind ({_first_line(error)}). Download or copy it again."
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160].rstrip(".") if lines else type(error).__name__
