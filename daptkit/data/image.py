"""What an image reader returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

Log: TypeAlias = Callable[[str], None]
"""Takes one line for the user."""

COVARIATES = ("manufacturer", "model", "field_strength")
"""Facts of the acquisition that may be kept and shown; the field strength is in tesla."""


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """Pixels of one image, upright, with no change of depth.

    Args:
        array: (H, W) grey or (H, W, C), any integer or float type.
        value_range: lowest and highest value that the pixels can have; infinite for floats.
        photometric: ``"MONOCHROME1"`` (low values are bright), ``"MONOCHROME2"`` or ``"RGB"``.
        frames: number of frames of the file.
        covariates: facts of the acquisition, by a name of :data:`COVARIATES`.
        display: whether ``value_range`` is what the file itself says to show, from black to white,
            such as the window of a DICOM file. Then the host fits no window of grey levels.
    """

    array: npt.NDArray[Any]
    value_range: tuple[float, float]
    photometric: str = "MONOCHROME2"
    frames: int = 1
    covariates: Mapping[str, str | float] = field(default_factory=dict)
    display: bool = False


@dataclass(frozen=True, kw_only=True)
class FileIdentity:
    """What the header of a file says it is of.

    The identifiers are a hospital's own: the host hashes them before it writes anything, and they
    are not in the object's text.

    Args:
        patient: identifier of the patient, empty where there is none.
        study: identifier of the examination, likewise.
        series: identifier of the series, likewise.
    """

    patient: str = field(default="", repr=False)
    study: str = field(default="", repr=False)
    series: str = field(default="", repr=False)


Reader: TypeAlias = Callable[[Path, int | None], DecodedImage]
"""Reads one frame of a file; ``None`` means the only frame."""
