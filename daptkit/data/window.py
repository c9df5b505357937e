"""Fitting of the conversion: the windows of images deeper than 8 bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.data.convert import Conversion, depth_kind
from daptkit.data.readers import NO_READERS, Readers
from daptkit.data.refs import FileRef, decode_ref
from daptkit.data.table import ImageTable
from daptkit.errors import DataError, UsageError

_IMAGES = 64
_PIXELS = 65536
_PERCENTILES = (0.5, 99.5)


def fit_conversion(
    tables: Sequence[ImageTable],
    *,
    img_size: int,
    in_chans: int,
    readers: Readers = NO_READERS,
    frames: str | None = None,
    fixed: tuple[float, float] | None = None,
) -> Conversion:
    """Fit the windows of deep images: their 0.5 and 99.5 percentiles.

    Up to 64 images of each table, evenly spaced, with up to 65,536 pixels each, are looked at.

    Args:
        tables: source training images first. A table's images decide the window of a depth only
            if no earlier table has images of it, so the target decides where the source is 8 bit.
        img_size: edge of the model's input, pixels.
        in_chans: channels of the model's input.
        readers: further formats.
        frames: how the frames of files with several were chosen, for the record.
        fixed: window to use instead of percentiles, for images that do not say what to show.

    Raises:
        DataError: all sampled pixels of a depth are (nearly) equal, so that no window exists.
    """
    windows: dict[str, tuple[float, float]] = {}
    for table in tables:
        for kind, pixels in _sample(table, readers).items():
            if kind == "display":
                windows[kind] = (0.0, 1.0)
            elif kind not in windows:
                windows[kind] = fixed or _window(pixels, table.domain)
    return Conversion(
        img_size=img_size,
        in_chans=in_chans,
        windows=windows,
        frames=frames,
        readers=_used(tables, readers),
    )


def parse_window(text: str, option: str = "--window") -> tuple[float, float]:
    """Read ``LOW:HIGH``, the grey levels that become black and white.

    Args:
        text: what the user gave.
        option: what it was given to, for the message.

    Raises:
        UsageError: not two finite numbers, or not in rising order.
    """
    low, colon, high = text.partition(":")
    try:
        window = float(low), float(high)
    except ValueError:
        window = (math.nan, math.nan)
    if not colon or not all(map(math.isfinite, window)) or window[0] >= window[1]:
        raise UsageError(f"{option} takes LOW:HIGH, such as -1000:400, not {text!r}.")
    return window


def _used(tables: Sequence[ImageTable], readers: Readers) -> dict[str, dict[str, Any]]:
    """Return the formats of plugins that read files of the tables."""
    if not readers.formats:
        return {}
    paths = {ref.path for table in tables for ref in table.refs if isinstance(ref, FileRef)}
    found = {one.name: one for path in paths if (one := readers.find(path)) is not None}
    return {name: found[name].to_json() for name in sorted(found)}


def _sample(table: ImageTable, readers: Readers) -> dict[str, npt.NDArray[Any]]:
    """Return pixels of the deep images among a sample, by depth."""
    found: dict[str, list[npt.NDArray[Any]]] = {}
    rows = np.unique(np.linspace(0, len(table) - 1, min(_IMAGES, len(table))).astype(np.int64))
    for row in rows:
        try:
            image = decode_ref(table.refs[row], readers)
        except DataError:  # reported with its name when the images are decoded
            continue
        kind = depth_kind(image)
        if kind is not None:
            flat = image.array.reshape(-1).astype(np.float64)
            found.setdefault(kind, []).append(flat[:: max(1, len(flat) // _PIXELS)])
    return {kind: np.concatenate(pixels) for kind, pixels in found.items()}


def _window(pixels: npt.NDArray[Any], domain: str) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(pixels, _PERCENTILES))
    if high <= low:
        raise DataError(
            f"the images of the {domain} are flat: 99% of their pixels are {low:g}, "
            "so no window of grey levels can be fitted; name one with --window LOW:HIGH."
        )
    return low, high
