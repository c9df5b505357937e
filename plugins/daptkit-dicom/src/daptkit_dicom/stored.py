"""The stored values of one frame, decompressed by pydicom's decoders."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.utils import as_pixel_options
from pydicom.uid import UID, JPEGExtended12Bit, RLELossless

from daptkit.errors import DataError
from daptkit_dicom.codestream import frame_size, without_boxes
from daptkit_dicom.header import frame_count, number, transfer_syntax, uid_name, why_no_pixels

TAGS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
"""Elements that :func:`read_stored` needs, beside ``Rows``."""

_KEYWORDS = {
    (0x7FE0, 0x0008): "FloatPixelData",
    (0x7FE0, 0x0009): "DoubleFloatPixelData",
    (0x7FE0, 0x0010): "PixelData",
}
_VRS = (b"OB", b"OW", b"OF", b"OD", b"UN")
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
# GDCM ends the process on damaged frames, and pylibjpeg-rle panics: neither is ever used.
_DECODERS = ("pylibjpeg", "pillow", "pyjpegls")
_RLE_DECODERS = ("pydicom",)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Stored values of one frame.

    Args:
        array: (H, W) or (H, W, 3) in the byte order of the machine.
        photometric: what they are, such as ``"MONOCHROME1"``, ``"PALETTE COLOR"`` or ``"RGB"``.
        value_range: lowest and highest that they can be; infinite for floats.
        keyword: element that they are from, such as ``"FloatPixelData"``.
    """

    array: npt.NDArray[Any]
    photometric: str
    value_range: tuple[float, float]
    keyword: str = "PixelData"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the value of the pixel data lies in the file, bytes."""

    keyword: str
    vr: str | None
    start: int
    end: int
    delimited: bool


def read_stored(file: BinaryIO, elements: Dataset, frame: int, max_pixels: int) -> Stored:
    """Decode one frame.

    Args:
        file: at its pixel data, as :func:`daptkit_dicom.header.read_elements` leaves it.
        elements: :data:`TAGS` and ``Rows`` of the header.
        frame: frame from 0, which exists by the header.
        max_pixels: larger images are refused.

    Raises:
        DataError: no or incomplete pixel data, too large, contradictory, an unknown encoding, or no
            decoder for it.
    """
    place = _find_pixels(file, elements)
    syntax = transfer_syntax(elements)
    decoder = _decoder(syntax)
    options = _pixel_options(elements, place, syntax, max_pixels)
    shift = _unused_low_bits(elements, options, syntax)
    options["bits_stored"] = options.get("bits_stored", 0) + shift
    if syntax.is_encapsulated:
        array, found = _decompress(file, place, options, decoder, frame)
    else:
        _check_length(place, options)
        file.seek(place.start)
        if options["bits_allocated"] == 1:
            array, found = _unpack_bits(file, options, frame), options
        else:
            array, found = decoder.as_array(file, index=frame, **options)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return Stored(
        array=array >> shift if shift else array,
        photometric=str(found["photometric_interpretation"]),
        value_range=_value_range(place, options, shift),
        keyword=place.keyword,
    )


def _find_pixels(file: BinaryIO, elements: Dataset) -> _Place:
    order = "<" if elements.original_encoding[1] else ">"
    start, head = file.tell(), file.read(12)
    # Files break the promise of their transfer syntax, so the bytes decide. A length, which stands
    # there without a VR, is even; the first letter of a VR is odd.
    vr = head[4:6].decode("ascii", "replace") if head[4:6] in _VRS else None
    used = 8 if vr is None else 12
    keyword = _KEYWORDS.get(struct.unpack_from(f"{order}2H", head)) if len(head) >= used else None
    if keyword is None:
        raise DataError(why_no_pixels(elements))
    length = struct.unpack_from(f"{order}L", head, used - 4)[0]
    start, size = start + used, file.seek(0, 2)
    delimited = length == _UNDEFINED
    return _Place(
        keyword=keyword,
        vr=vr,
        start=start,
        end=size if delimited else min(size, start + length),
        delimited=delimited,
    )


def _pixel_options(
    elements: Dataset, place: _Place, syntax: UID, max_pixels: int
) -> dict[str, Any]:
    """Return what pydicom's decoders need to know, after a check of it."""
    needed = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation"]
    if place.keyword == "PixelData":
        needed += ["BitsStored", "PixelRepresentation"]
    if number(elements, "SamplesPerPixel") == 3 and not syntax.is_encapsulated:
        needed.append("PlanarConfiguration")
    for keyword in needed:
        if elements.get(keyword) in (None, ""):
            raise DataError(f"the header has no {keyword}")
    rows, columns = number(elements, "Rows") or 0, number(elements, "Columns") or 0
    if rows * columns > max_pixels:
        raise DataError(f"{columns:.0f} x {rows:.0f} pixels, more than {max_pixels:,}")
    photometric = str(elements.PhotometricInterpretation)
    if photometric not in [str(one.value) for one in PhotometricInterpretation]:
        raise DataError("an unknown PhotometricInterpretation")
    # A decompressed frame has its samples in this order, whatever its header says.
    planar = {"planar_configuration": 0} if syntax.is_encapsulated else {}
    return as_pixel_options(
        elements,
        number_of_frames=frame_count(elements),
        pixel_keyword=place.keyword,
        pixel_vr=place.vr,
        transfer_syntax_uid=syntax,
        **planar,
    )


def _decoder(syntax: UID) -> Decoder:
    try:
        return get_decoder(syntax)
    except NotImplementedError:
        name = uid_name(syntax, "an unknown transfer syntax")
        raise DataError(f"{name} is not supported") from None


def _unused_low_bits(elements: Dataset, options: dict[str, Any], syntax: UID) -> int:
    """Return by how many bits the stored values lie above the lowest bit of their words."""
    high = number(elements, "HighBit")
    if high is None or options["pixel_keyword"] != "PixelData":
        return 0
    if syntax.is_encapsulated and syntax != RLELossless:  # these compress values, not words
        return 0
    shift = int(high) + 1 - int(options["bits_stored"])
    if shift < 0 or int(high) >= int(options["bits_allocated"]):
        raise DataError("HighBit contradicts BitsStored or BitsAllocated")
    return shift


def _value_range(place: _Place, options: dict[str, Any], shift: int) -> tuple[float, float]:
    if place.keyword != "PixelData":
        return -math.inf, math.inf
    bits = int(options["bits_stored"]) - shift
    if options["pixel_representation"]:
        return -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    return 0.0, 2.0**bits - 1


def _check_length(place: _Place, options: dict[str, Any]) -> None:
    """Refuse uncompressed pixel data that are not as long as the header says."""
    if place.delimited:
        raise DataError("compressed pixel data, but the header names no compression")
    samples = int(options["rows"]) * int(options["columns"]) * int(options["samples_per_pixel"])
    samples *= int(options["number_of_frames"])
    expected = math.ceil(samples * int(options["bits_allocated"]) / 8)
    actual = place.end - place.start
    if options["photometric_interpretation"] == "YBR_FULL_422":
        if actual >= expected:
            raise DataError("YBR_FULL_422 pixel data that are a third too long")
        expected = expected // 3 * 2
    if actual < expected:
        raise DataError(f"truncated: {actual:,} of {expected:,} bytes of pixel data")


def _unpack_bits(file: BinaryIO, options: dict[str, Any], frame: int) -> npt.NDArray[np.uint8]:
    """Return (H, W) bits of a frame, which may start within a byte."""
    rows, columns = int(options["rows"]), int(options["columns"])
    count = rows * columns * int(options["samples_per_pixel"])
    skipped, offset = divmod(frame * count, 8)
    file.seek(skipped, 1)
    data = file.read(math.ceil((offset + count) / 8))
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    return bits[offset : offset + count].reshape(rows, columns)


def _decompress(
    file: BinaryIO, place: _Place, options: dict[str, Any], decoder: Decoder, frame: int
) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    name = uid_name(decoder.UID, "this transfer syntax")
    _check_fragments(file, place)
    file.seek(place.start)
    offsets = options.pop("extended_offsets", None)
    count = options["number_of_frames"]
    data = without_boxes(get_frame(file, frame, number_of_frames=count, extended_offsets=offsets))
    size, stated = frame_size(data), (options["rows"], options["columns"])
    if size is not None and size != stated:
        raise DataError(
            f"the compressed frame has {size[1]} x {size[0]} pixels, the header says "
            f"{stated[1]} x {stated[0]}"
        )
    plugin = _plugin(decoder, options)
    if plugin is None:
        raise DataError(f'{name} needs a decoder: pip install "daptkit-dicom[codecs]"')
    options["number_of_frames"] = 1
    try:
        return decoder.as_array(encapsulate([data]), index=0, decoding_plugin=plugin, **options)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - decoders raise anything; what they say may quote the file
        raise DataError(
            f"{name}: a frame cannot be decoded by {plugin}: damaged, or an unusual variant"
        ) from None


def _check_fragments(file: BinaryIO, place: _Place) -> None:
    """Refuse compressed pixel data that end before they should: decoders may fill up the rest."""
    at = place.start
    while at < place.end:
        file.seek(at)
        head = file.read(8)
        if head[:4] == _END and place.delimited:
            return
        if head[:4] != _ITEM[: len(head)]:
            raise DataError("damaged: the pixel data are not in fragments, as their encoding says")
        at += 8 + int.from_bytes(head[4:], "little")
    if place.delimited or at > place.end:
        raise DataError("truncated: the compressed pixel data are not complete")


def _plugin(decoder: Decoder, options: dict[str, Any]) -> str | None:
    """Return the decoder of pydicom to use; ``None`` where none is installed."""
    syntax = decoder.UID
    known = _RLE_DECODERS if syntax == RLELossless else _DECODERS
    if syntax == JPEGExtended12Bit and int(options["bits_stored"]) > 8:
        known = ("pylibjpeg",)
    return next((one for one in known if one in decoder.available_plugins), None)
