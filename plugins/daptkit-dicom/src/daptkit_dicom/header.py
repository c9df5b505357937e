"""What a DICOM header says, short of the pixels. No value of a tag gets into an error."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    ParametricMapStorage,
    RTDoseStorage,
    SegmentationStorage,
)

from daptkit.errors import DataError
from daptkit_dicom.sniff import PREAMBLE, has_signature

LARGEST_INFLATED = 2**30
"""Bytes that a deflated file may become: a small file may claim any size."""

# Groups 0002 and 0008, either byte order: where a file without preamble starts.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_OTHER_IMAGES = (ParametricMapStorage, RTDoseStorage, SegmentationStorage)
_META_LENGTH = b"\x02\x00\x00\x00UL\x04\x00"
_META_START = PREAMBLE + 4


def open_dicom(path: Path) -> BinaryIO:
    """Open a file, or the inflated content of a deflated one.

    Raises:
        DataError: empty, or no DICOM file; damaged or too large when inflated.
    """
    file = path.open("rb")
    try:
        start = file.read(PREAMBLE + 4 + len(_META_LENGTH) + 4)
        if not start:
            raise DataError("empty file")
        if not has_signature(start) and start[:2] not in _FIRST_GROUPS:
            raise DataError("not a DICOM file")
        meta_end = _meta_end(start)
        file.seek(0)
        if meta_end is None:
            return file
        meta = file.read(meta_end)
        if DeflatedExplicitVRLittleEndian.encode() not in meta[_META_START:]:
            file.seek(0)
            return file
        inflated = _inflate(file)
        file.close()
    except BaseException:
        file.close()
        raise
    # Same length, so that the length of the meta header stays right.
    plain = ExplicitVRLittleEndian.ljust(len(DeflatedExplicitVRLittleEndian), "\0").encode()
    return BytesIO(meta.replace(DeflatedExplicitVRLittleEndian.encode(), plain) + inflated)


def _meta_end(start: bytes) -> int | None:
    """Return where the meta header ends; ``None`` where its length is not stated."""
    length_at = _META_START + len(_META_LENGTH)
    if start[_META_START:length_at] != _META_LENGTH:
        return None
    return length_at + 4 + int.from_bytes(start[length_at : length_at + 4], "little")


def _inflate(file: BinaryIO) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = stream.decompress(file.read(), LARGEST_INFLATED)
    except zlib.error:
        raise DataError("damaged: it cannot be inflated") from None
    if stream.unconsumed_tail:
        raise DataError(f"inflates to more than {LARGEST_INFLATED:,} bytes")
    if not stream.eof:
        raise DataError("truncated: the deflated data are not complete")
    return inflated


def read_elements(file: BinaryIO, keywords: Iterable[str]) -> Dataset:
    """Read chosen elements of the header; the file is left at its pixel data, or its end.

    Args:
        file: as :func:`open_dicom` returns it.
        keywords: elements to read; others are skipped and never held in memory.

    Raises:
        DataError: the content is no DICOM.
    """
    start = file.read(PREAMBLE + 4)
    file.seek(0)
    tags: list[Any] = ["SOPClassUID", "Rows", *keywords]
    elements = dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)
    # Almost any bytes can be read as elements of some kind.
    sensible = len(elements.file_meta) or _is_known(_sop_class(elements)) or "Rows" in elements
    if not has_signature(start) and not sensible:
        raise DataError("not a DICOM file")
    return elements


def transfer_syntax(elements: Dataset) -> UID:
    """Return how a file is encoded; where it does not say, how it was found to be."""
    stated = elements.file_meta.get("TransferSyntaxUID")
    if stated:
        return UID(stated)
    implicit, little = elements.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def why_no_pixels(elements: Dataset) -> str:
    """Return the reason why a file without pixel data is no image; it names the kind of object."""
    sop_class = _sop_class(elements)
    image = uid_name(sop_class, "").endswith("Image Storage") or sop_class in _OTHER_IMAGES
    if image or "Rows" in elements:
        return "no pixel data: the file is truncated, or a header alone"
    if sop_class == MediaStorageDirectoryStorage:
        return "not an image: a DICOMDIR, which lists files"
    if _is_known(sop_class):
        return f"not an image: an object of the kind '{sop_class.name}'"
    return "no pixel data: not an image, or truncated"


def uid_name(uid: UID, otherwise: str) -> str:
    """Return the name that the standard gives a UID; other UIDs may identify a patient."""
    return uid.name if _is_known(uid) else otherwise


def frame_count(elements: Dataset) -> int:
    """Return the number of frames; 1 where the header does not say.

    Raises:
        DataError: it is no number.
    """
    value = number(elements, "NumberOfFrames")
    if value is None or value == 0:
        return 1
    if value < 0 or value != int(value):
        raise DataError("NumberOfFrames is no count")
    return int(value)


def number(elements: Dataset, keyword: str) -> float | None:
    """Return an element with one number; ``None`` where it is absent or empty.

    Raises:
        DataError: it is not one finite number.
    """
    values = numbers(elements, keyword)
    if len(values) > 1:
        raise DataError(f"{keyword} has more than one value")
    return values[0] if values else None


def numbers(elements: Dataset, keyword: str) -> list[float]:
    """Return an element with any count of numbers.

    Raises:
        DataError: they are not finite numbers.
    """
    try:
        value = elements.get(keyword)
        listed = value if isinstance(value, (MultiValue, list, tuple)) else [value]
        found = [float(one) for one in listed if one is not None and one != ""]
    except (TypeError, ValueError):
        raise DataError(f"{keyword} is no number") from None
    if not all(map(math.isfinite, found)):
        raise DataError(f"{keyword} is not finite")
    return found


def _sop_class(elements: Dataset) -> UID:
    stated = elements.get("SOPClassUID") or elements.file_meta.get("MediaStorageSOPClassUID")
    return UID(str(stated or ""))


def _is_known(uid: UID) -> bool:
    return bool(uid) and uid.name != uid
