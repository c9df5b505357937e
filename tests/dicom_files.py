"""Writes small DICOM files with known pixels, for the tests of readers and of whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from daptkit.reader import DecodedImage
from daptkit_dicom.plugin import DicomOptions
from daptkit_dicom.reader import read_frame

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422")
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
LOSSLESS = (DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless)
STEPS = np.add.outer(np.arange(33), 2 * np.arange(35))
"""Even steps of grey; encoders refuse images below 32 pixels."""


def spanning(low: float, high: float) -> tuple[float, float]:
    """Return center and width of the LINEAR window that shows low as black and high as white."""
    return (low + high + 1) / 2, high - low + 1


def read(path: Path, frame: int | None = None, **options: Any) -> DecodedImage:
    """Read a frame with options of the reader."""
    return read_frame(path, frame, DicomOptions(**options))


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    photometric: str = "MONOCHROME2",
    bits: int | None = 12,
    window: tuple[float, float] | None = None,
    transfer_syntax: str = ExplicitVRLittleEndian,
    patient: str | None = None,
    study: str | None = None,
    series: str | None = None,
    frames: int | None = None,
    burned_in: str | None = None,
    manufacturer: str | None = None,
    model: str | None = None,
    field_strength: float | None = None,
    preamble: bool = True,
    **elements: Any,
) -> Path:
    """Write stored values as a DICOM file, and return its path.

    Args:
        path: file to write; its folder is made.
        pixels: (H, W), (N, H, W), or with a last axis of 3 where ``photometric`` is a colour.
            Integers of any sign, or floats.
        photometric: photometric interpretation; values are written as they are.
        bits: bits stored; all of the type where ``None``.
        window: center and width.
        transfer_syntax: compressed ones need an encoder of pydicom.
        patient: patient's ID.
        study: study instance UID.
        series: series instance UID.
        frames: number of frames to state, if not the true one.
        burned_in: ``"YES"`` or ``"NO"``.
        manufacturer: of the scanner.
        model: of the scanner.
        field_strength: of the scanner, tesla.
        preamble: whether to write preamble and file meta information.
        elements: further elements by keyword, which replace those above; a value, or a whole
            element where the VR matters.
    """
    dataset = Dataset()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    stated: dict[str, Any] = {
        "PatientID": patient,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "BurnedInAnnotation": burned_in,
        "Manufacturer": manufacturer,
        "ManufacturerModelName": model,
        "MagneticFieldStrength": field_strength,
        "WindowCenter": window and window[0],
        "WindowWidth": window and window[1],
    }
    _describe_pixels(dataset, pixels, photometric, bits, frames)
    for keyword, value in (stated | elements).items():
        if isinstance(value, DataElement):
            dataset.add(value)
        elif value is not None:
            setattr(dataset, keyword, value)
    syntax = UID(transfer_syntax)
    _set_pixels(dataset, pixels, little=syntax.is_little_endian)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(dataset, path, syntax, preamble=preamble)
    return path


def need_encoder(syntax: str) -> None:
    """Skip a test that compresses by a syntax which nothing installed writes."""
    if syntax == JPEGLSLossless:
        pytest.importorskip("jpeg_ls")
    if syntax == JPEG2000Lossless:
        pytest.importorskip("openjpeg")


def rewrite(path: Path, **elements: Any) -> Path:
    """Change elements of a written file; ``None`` removes one."""
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        elif keyword == "TransferSyntaxUID":
            dataset.file_meta.TransferSyntaxUID = value
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def lut(entries: list[int], first: int, bits: int) -> Dataset:
    """Return an item of a LUT sequence that maps ``first`` and the values above it."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return item


def _describe_pixels(
    dataset: Dataset,
    pixels: np.ndarray,
    photometric: str,
    bits: int | None,
    frames: int | None,
) -> None:
    colour = photometric in COLOURS
    shape = pixels.shape[:-1] if colour else pixels.shape
    dataset.Rows, dataset.Columns = shape[-2:]
    count = frames if frames is not None else (shape[0] if len(shape) == 3 else None)
    if count is not None:
        dataset.NumberOfFrames = count
    dataset.SamplesPerPixel = 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 1 if bits == 1 else 8 * pixels.dtype.itemsize
    if pixels.dtype.kind != "f":
        dataset.BitsStored = min(bits or dataset.BitsAllocated, dataset.BitsAllocated)
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")


def _set_pixels(dataset: Dataset, pixels: np.ndarray, *, little: bool) -> None:
    if pixels.dtype.kind == "f":
        double = pixels.dtype.itemsize == 8
        keyword, vr = ("DoubleFloatPixelData", "OD") if double else ("FloatPixelData", "OF")
        setattr(dataset, keyword, pixels.tobytes())
        dataset[keyword].VR = vr
        return
    if dataset.BitsAllocated == 1:
        data = pack_bits(pixels.astype(np.uint8).reshape(-1))
    else:
        data = pixels.astype(pixels.dtype.newbyteorder("<" if little else ">")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated <= 8 else "OW"


def _save(dataset: Dataset, path: Path, syntax: UID, *, preamble: bool) -> None:
    if not preamble:
        dataset.save_as(
            path, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian
        )
        return
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = (
        ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    )
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)


def read_written(
    folder: Path, pixels: np.ndarray, options: dict[str, Any] | None = None, **written: Any
) -> DecodedImage:
    """Write pixels as :func:`write_dicom` does and read them."""
    return read(write_dicom(folder / "a.dcm", pixels, **written), **(options or {}))
