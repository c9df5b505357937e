"""Frames of DICOM files as images, and what their headers say they are of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from daptkit.errors import DataError
from daptkit.reader import MAX_PIXELS, DecodedImage, FileIdentity, select_frame
from daptkit_dicom import grey, stored
from daptkit_dicom.header import frame_count, number, open_dicom, read_elements
from daptkit_dicom.plugin import DicomOptions
from daptkit_dicom.quiet import quiet
from daptkit_dicom.stored import Stored, read_stored

_COVARIATES = {"manufacturer": "Manufacturer", "model": "ManufacturerModelName"}
_FIELD_STRENGTH = "MagneticFieldStrength"
_FACTS = (*_COVARIATES.values(), _FIELD_STRENGTH)
_IDENTIFIERS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
_PALETTE = tuple(
    f"{kind}{colour}PaletteColorLookupTable{part}"
    for kind, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    for colour in ("Red", "Green", "Blue")
)
_TAGS = (*stored.TAGS, *grey.TAGS, *_PALETTE, *_FACTS, "BurnedInAnnotation", "PixelPresentation")
_GAUSS_PER_TESLA = 10_000.0
_STRONGEST_TESLA = 100.0


def read_frame(path: Path, frame: int | None, options: DicomOptions) -> DecodedImage:
    """Read one frame.

    Args:
        path: DICOM file.
        frame: frame from 0; ``None`` for a file with one.
        options: window or VOI LUT, and what happens to burned-in text.

    Returns:
        (H, W) grey as :func:`daptkit_dicom.grey.grey_levels` describes, MONOCHROME1 not inverted,
        or (H, W, 3) RGB.

    Raises:
        DataError: no image, damaged, too large, of an encoding without a decoder, burned-in text,
            or several frames and none named; no path and no value of a tag in the text.
    """
    with _reasons(), open_dicom(path) as file:
        elements = read_elements(file, _TAGS)
        _refuse_burned_in(elements, options)
        frames = frame_count(elements)
        index = select_frame(frames, frame)
        found = read_stored(file, elements, index, MAX_PIXELS)
        array, value_range, display = _levels(found, elements, index, options)
        return DecodedImage(
            array=array,
            value_range=value_range,
            photometric=found.photometric if array.ndim == 2 else "RGB",
            frames=frames,
            covariates=_covariates(elements),
            display=display,
        )


def count_frames(path: Path, options: DicomOptions) -> int:
    """Return the number of frames of a file, from its header.

    Raises:
        DataError: no DICOM file, or a damaged header.
    """
    with _reasons(), open_dicom(path) as file:
        return frame_count(read_elements(file, ("NumberOfFrames",)))


def identify(path: Path) -> FileIdentity:
    """Return which patient, study and series a file is of, from its header.

    Raises:
        DataError: no DICOM file, or a damaged header.
    """
    with _reasons(), open_dicom(path) as file:
        elements = read_elements(file, _IDENTIFIERS)
        patient, study, series = (_text(elements, keyword) for keyword in _IDENTIFIERS)
        return FileIdentity(patient=patient, study=study, series=series)


@contextmanager
def _reasons() -> Iterator[None]:
    """Read in silence, and turn whatever is raised into a reason without its text."""
    try:
        with quiet():
            yield
    except DataError:
        raise
    except MemoryError:
        raise DataError("not enough memory to decode it") from None
    except Exception as error:  # noqa: BLE001 - pydicom raises anything, and quotes tags
        cause = error.strerror if isinstance(error, OSError) else None
        damaged = f"damaged, or not valid DICOM ({type(error).__name__})"
        raise DataError(cause or damaged) from None


def _refuse_burned_in(elements: Dataset, options: DicomOptions) -> None:
    stated = str(elements.get("BurnedInAnnotation") or "").strip().upper()
    if stated == "YES" and options.burned_in == "refuse":
        raise DataError(
            "its header says that text is burned into the pixels (BurnedInAnnotation); "
            "--reader-options dicom.burned_in=allow reads it all the same"
        )


def _levels(
    found: Stored, elements: Dataset, index: int, options: DicomOptions
) -> tuple[npt.NDArray[Any], tuple[float, float], bool]:
    """Return (H, W) or (H, W, 3), its range, and whether that is black to white."""
    kind, array = found.photometric, found.array
    if kind in ("MONOCHROME1", "MONOCHROME2") and array.ndim == 2:
        levels = grey.grey_levels(
            found, elements, index, voi=options.voi == "file", voi_index=options.voi_index
        )
        return levels.array, levels.value_range, levels.display
    if kind == "PALETTE COLOR" and array.ndim == 2:
        return _coloured(array, elements), (0.0, 255.0), False
    if kind == "RGB" and array.ndim == 3 and array.dtype.kind == "u":
        eight_bit = array.dtype == np.uint8 and found.value_range[1] == 255
        if array.dtype == np.uint8 and not eight_bit:
            array = array.astype(np.uint16)  # 8-bit arrays span 0 to 255
        return array, found.value_range, not eight_bit
    raise DataError(
        f"{kind} pixels of shape {array.shape} and type {array.dtype} are not supported"
    )


def _coloured(array: npt.NDArray[Any], elements: Dataset) -> npt.NDArray[np.uint8]:
    """Look up palette indices (H, W); (H, W, 3), the higher byte of deeper palettes."""
    if "RedPaletteColorLookupTableDescriptor" not in elements:
        raise DataError("PALETTE COLOR pixels without a palette")
    colours = apply_color_lut(array, elements)
    if colours.dtype != np.uint8:
        colours = colours >> 8
    return colours.astype(np.uint8)


def _covariates(elements: Dataset) -> dict[str, str | float]:
    found: dict[str, str | float] = {
        name: text for name, keyword in _COVARIATES.items() if (text := _text(elements, keyword))
    }
    strength = number(elements, _FIELD_STRENGTH)
    if strength:
        # Old scanners state gauss.
        gauss = strength > _STRONGEST_TESLA
        found["field_strength"] = strength / _GAUSS_PER_TESLA if gauss else strength
    return found


def _text(elements: Dataset, keyword: str) -> str:
    value = elements.get(keyword)
    return "" if value is None else str(value).strip()
