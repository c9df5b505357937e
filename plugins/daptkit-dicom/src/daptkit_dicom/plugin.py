"""DICOM as daptkit sees it before a run; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.plugin import ReaderSpec, hookimpl, option


@dataclass(frozen=True, kw_only=True)
class DicomOptions:
    """Options of ``dicom``."""

    voi: str = option(
        "file",
        "Grey levels: file (its own window or LUT), or off (values before it, for --window).",
        choices=("file", "off"),
    )
    voi_index: int = option(0, "Which of a file's windows or VOI LUTs, from 0.", low=0)
    burned_in: str = option(
        "refuse",
        "Images whose header says that text is burned into the pixels: refuse, or allow.",
        choices=("refuse", "allow"),
    )


@hookimpl
def daptkit_readers() -> ReaderSpec:
    """Offer ``dicom``."""
    return ReaderSpec(
        name="dicom",
        extensions=(".dcm", ".dicom", ".ima"),
        factory="daptkit_dicom.reader:read_frame",
        count="daptkit_dicom.reader:count_frames",
        identify="daptkit_dicom.reader:identify",
        sniff="daptkit_dicom.sniff:is_dicom",
        options=DicomOptions,
        summary="DICOM images: modality LUT, window or VOI LUT, palettes, frames, compression.",
    )
