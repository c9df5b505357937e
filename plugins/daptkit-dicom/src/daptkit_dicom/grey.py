"""Stored values to grey levels: modality LUT, then VOI LUT or window, then padding.

DICOM PS3.3 C.11.1 (modality), C.11.2 (VOI), C.7.5.1.1.2 (padding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from daptkit.errors import DataError
from daptkit_dicom.header import number, numbers
from daptkit_dicom.stored import Stored

TAGS = (
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    *(
        f"{kind}PixelPadding{end}"
        for kind in ("", "Float", "DoubleFloat")
        for end in ("Value", "RangeLimit")
    ),
)
"""Elements that :func:`grey_levels` needs."""

_WORD = 2**16
_LARGEST = 2**62
_STEEPEST = 700.0
_WAY_OUT = "; --reader-options dicom.voi=off reads the values before it"


@dataclass(frozen=True, kw_only=True)
class Grey:
    """Grey levels of one frame.

    Args:
        array: (H, W).
        value_range: lowest and highest value that they can have.
        display: whether that range is black to white.
    """

    array: npt.NDArray[Any]
    value_range: tuple[float, float]
    display: bool = False


def grey_levels(
    stored: Stored, elements: Dataset, frame: int, *, voi: bool, voi_index: int
) -> Grey:
    """Return the grey levels of a monochrome frame.

    With a window or VOI LUT: float32 in [0, 1], black to white (for MONOCHROME1, white to black).
    Without: uint8 scaled to 0..255 where values are unsigned and at most 8 bit deep; otherwise the
    values after the modality LUT, integers where all possible values are.

    Args:
        stored: (H, W) stored values.
        elements: :data:`TAGS` of the header.
        frame: frame from 0, for transforms that differ between frames.
        voi: whether to apply the window or VOI LUT.
        voi_index: which of them, from 0.

    Raises:
        DataError: a transform is incomplete or malformed, or there is none of this index.
    """
    padding = _padding(stored, elements)
    grey = _modality(stored, elements, frame)
    shown = _shown(grey.array, elements, frame, voi_index) if voi else None
    if shown is not None:
        grey = Grey(array=shown.astype(np.float32), value_range=(0.0, 1.0), display=True)
    elif grey.value_range[0] == 0 and grey.value_range[1] <= 255 and grey.array.dtype.kind in "iu":
        grey = _as_bytes(grey)
    if padding is not None:
        _darken(grey, padding, white_is_low=stored.photometric == "MONOCHROME1")
    return grey


def window(
    values: npt.NDArray[Any], center: float, width: float, function: str = "LINEAR"
) -> npt.NDArray[np.float64]:
    """Return values in [0, 1] after a window.

    LINEAR: (x - (c - 0.5)) / (w - 1) + 0.5, LINEAR_EXACT: (x - c) / w + 0.5, both clipped to
    [0, 1]; SIGMOID: 1 / (1 + exp(-4 (x - c) / w)).  DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Args:
        values: any shape, after the modality LUT.
        center: c.
        width: w, at least 1 for LINEAR, else above 0.
        function: one of the three.

    Raises:
        DataError: a width or function that is not allowed.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise DataError(f"an unknown VOILUTFunction{_WAY_OUT}")
    if width < 1 if function == "LINEAR" else width <= 0:
        raise DataError(f"WindowWidth is too small{_WAY_OUT}")
    x = values.astype(np.float64)
    if function == "SIGMOID":
        steps = (-4.0 * (x - center) / width).clip(-_STEEPEST, _STEEPEST)
        return np.asarray(1.0 / (1.0 + np.exp(steps)))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0:
        return (x > center).astype(np.float64)
    return np.asarray(((x - center) / width + 0.5).clip(0.0, 1.0))


def _modality(stored: Stored, elements: Dataset, frame: int) -> Grey:
    """Apply the modality LUT, or the slope and intercept."""
    array, (low, high) = stored.array, stored.value_range
    if elements.get("ModalityLUTSequence"):
        table, top = _lookup(array, elements.ModalityLUTSequence[0], elements)
        return Grey(array=table, value_range=(0.0, top))
    source = _group(elements, frame, "PixelValueTransformationSequence") or elements
    slope, intercept = number(source, "RescaleSlope"), number(source, "RescaleIntercept")
    if (slope is None) != (intercept is None):
        raise DataError("only one of RescaleSlope and RescaleIntercept is there")
    if slope is None or intercept is None or (slope, intercept) == (1.0, 0.0):
        return Grey(array=array, value_range=(low, high))
    if slope == 0:
        raise DataError("RescaleSlope is 0")
    low, high = sorted((low * slope + intercept, high * slope + intercept))
    if array.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        largest = max(-low, high)
        if largest < _LARGEST:
            whole = array.astype(np.int64) * int(slope) + int(intercept)
            dtype = np.int32 if largest < 2**31 else np.int64
            return Grey(array=whole.astype(dtype), value_range=(low, high))
    values = (array.astype(np.float64) * slope + intercept).astype(np.float32)
    return Grey(array=values, value_range=(low, high))


def _shown(
    values: npt.NDArray[Any], elements: Dataset, frame: int, index: int
) -> npt.NDArray[np.float64] | None:
    """Apply a VOI LUT, or else a window; ``None`` where the file has neither."""
    source = _group(elements, frame, "FrameVOILUTSequence") or elements
    tables = source.get("VOILUTSequence") or []
    centers, widths = numbers(source, "WindowCenter"), numbers(source, "WindowWidth")
    if len(centers) != len(widths):
        raise DataError(f"WindowCenter and WindowWidth differ in number{_WAY_OUT}")
    count = len(tables) or len(centers)
    if not count:
        return None
    if index >= count:
        raise DataError(
            f"no window or VOI LUT {index}; the file has {count}, counted from 0: "
            "--reader-options dicom.voi_index=0"
        )
    if tables:
        table, top = _lookup(values, tables[index], elements)
        return table / top
    function = str(source.get("VOILUTFunction") or "LINEAR")
    return window(values, centers[index], widths[index], function)


def _lookup(
    values: npt.NDArray[Any], item: Dataset, elements: Dataset
) -> tuple[npt.NDArray[Any], float]:
    """Return values mapped by a LUT, (H, W) unsigned, and the highest that it can give."""
    descriptor = numbers(item, "LUTDescriptor")
    if len(descriptor) != 3 or not 1 <= descriptor[2] <= 16:
        raise DataError("a malformed LUTDescriptor")
    count, first, bits = (int(one) for one in descriptor)
    count = count or _WORD
    # Without a VR of its own the first value may have been read as unsigned.
    first = first - _WORD if first + count > _WORD else first
    data = item.get("LUTData")
    if isinstance(data, bytes):
        width = 2 if len(data) >= 2 * count else 1
        order = "<" if elements.original_encoding[1] else ">"
        table = np.frombuffer(data[: len(data) // width * width], f"{order}u{width}")
    else:
        table = np.atleast_1d(np.asarray(data, np.uint16))
    if len(table) < count:
        raise DataError("a LUT is shorter than its descriptor says")
    table = table[:count].astype(np.uint16)
    if table.max() >= 2**bits:
        raise DataError("a LUT has higher values than its descriptor says")
    index = np.floor(values).astype(np.int64) - first
    return table[index.clip(0, count - 1)], float(2**bits - 1)


def _group(elements: Dataset, frame: int, keyword: str) -> Dataset | None:
    """Return a functional group of the frame, or the one that all frames share."""
    places = (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    )
    for sequence, number_of in places:
        groups = elements.get(sequence) or []
        found = groups[number_of].get(keyword) if number_of < len(groups) else None
        if found:
            item: Dataset = found[0]
            return item
    return None


def _as_bytes(grey: Grey) -> Grey:
    high = int(grey.value_range[1])
    array = grey.array
    if high != 255:
        array = (array.astype(np.uint16) * 255 + high // 2) // high
    return Grey(array=array.astype(np.uint8), value_range=(0.0, 255.0))


def _padding(stored: Stored, elements: Dataset) -> npt.NDArray[np.bool_] | None:
    """Return which pixels are padding, (H, W); ``None`` where none are."""
    kind = stored.keyword.removesuffix("PixelData")
    value = elements.get(f"{kind}PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = elements.get(f"{kind}PixelPaddingRangeLimit")
    array: Any = stored.array
    if array.dtype.kind == "f":
        edges = [float(one) for one in (value, limit) if one is not None]
        if np.isnan(edges).any():
            return _any(np.isnan(array))
    else:
        edges = [_in_type(int(one), array.dtype) for one in (value, limit) if one is not None]
    return _any((array >= min(edges)) & (array <= max(edges)))


def _any(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
    return mask if mask.any() else None


def _in_type(value: int, dtype: np.dtype[Any]) -> float:
    """Return a padding value as the pixels hold it: it may have been read with the other sign."""
    low = int(np.iinfo(dtype).min)
    fits = low <= value <= int(np.iinfo(dtype).max)
    return float(value if fits or dtype.itemsize != 2 else (value - low) % _WORD + low)


def _darken(grey: Grey, padding: npt.NDArray[np.bool_], *, white_is_low: bool) -> None:
    """Give padding the darkest level that is shown: that of the range, or of the other pixels."""
    if grey.display:
        darkest = grey.value_range[1] if white_is_low else grey.value_range[0]
    elif padding.all():
        return
    else:
        others = grey.array[~padding]
        darkest = others.max() if white_is_low else others.min()
    grey.array[padding] = darkest
