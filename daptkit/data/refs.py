"""Where the pixels of an image are: a file, or a row of an array."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from daptkit.data.decode import read_image
from daptkit.data.image import DecodedImage
from daptkit.data.pixels import type_range
from daptkit.data.readers import Readers
from daptkit.errors import DataError


@dataclass(frozen=True, slots=True)
class FileRef:
    """One frame of an image file; ``frame`` is ``None`` for a file with one."""

    path: Path
    frame: int | None = None

    def exists(self) -> bool:
        """Return whether there is such a file, in folders with permission to look."""
        try:
            return self.path.is_file()
        except OSError:
            return False


@dataclass(frozen=True, slots=True, eq=False)
class ArrayRef:
    """Row of an (N, H, W) or (N, H, W, C) array, which many references share."""

    array: npt.NDArray[Any]
    row: int


Ref: TypeAlias = FileRef | ArrayRef


def decode_ref(ref: Ref, readers: Readers) -> DecodedImage:
    """Read the pixels behind a reference.

    Raises:
        DataError: they cannot be read; the message is the reason and holds no path.
    """
    if isinstance(ref, FileRef):
        return read_image(ref.path, ref.frame, readers)
    pixels = ref.array[ref.row]
    check_finite(pixels)
    return DecodedImage(array=pixels, value_range=type_range(pixels.dtype))


def check_finite(pixels: npt.NDArray[Any]) -> None:
    """Refuse NaN and infinite pixels.

    Raises:
        DataError: some are.
    """
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise DataError("pixels are NaN or infinite")


def digest_ref(ref: Ref) -> bytes:
    """Return the SHA-256 of a file's bytes or of an array row with its type and shape.

    An unreadable file has the digest of nothing: reading it later is what reports it.
    """
    if isinstance(ref, ArrayRef):
        pixels = ref.array[ref.row]
        header = f"{pixels.dtype.str}{pixels.shape}".encode()
        return hashlib.sha256(header + pixels.tobytes()).digest()
    try:
        with ref.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return hashlib.sha256().digest()
