"""What an image reader returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

Log: TypeAlias = Callable[[str], None]
"""Takes one line for the user."""


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """Pixels of one image as they are stored, upright, with no change of depth.

    Args:
        array: (H, W) grey or (H, W, C), any integer or float type.
        value_range: lowest and highest value that the format can hold; infinite for floats.
        photometric: ``"MONOCHROME1"`` (low values are bright), ``"MONOCHROME2"`` or ``"RGB"``.
        frames: number of frames of the file.
        covariates: facts of the acquisition that may be shown, such as the manufacturer.
    """

    array: npt.NDArray[Any]
    value_range: tuple[float, float]
    photometric: str = "MONOCHROME2"
    frames: int = 1
    covariates: Mapping[str, str | float] = field(default_factory=dict)


Reader: TypeAlias = Callable[[Path, int | None], DecodedImage]
"""Reads one frame of a file; ``None`` means the only frame."""


def find_reader(name: str, readers: Mapping[str, Reader]) -> Reader | None:
    """Return the reader of the longest extension that a file name ends with, if any.

    Args:
        name: file name; case does not matter.
        readers: lower-case extension with its dot, such as ``".nii.gz"``, to reader.
    """
    lower = name.lower()
    fitting = [extension for extension in readers if lower.endswith(extension)]
    return readers[max(fitting, key=len)] if fitting else None
