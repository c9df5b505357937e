"""Small operations on decoded pixel arrays that every decoder shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def on_black(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Composite integer pixels on black: x * alpha / alpha_max, rounded.

    Args:
        array: (H, W, C + 1) unsigned integers, alpha last.

    Returns:
        (H, W, C) of the same type.
    """
    top = int(np.iinfo(array.dtype).max)
    colour = array[..., :-1].astype(np.uint64) * array[..., -1:]
    composited: npt.NDArray[Any] = ((colour + top // 2) // top).astype(array.dtype)
    return composited


def upright(array: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Undo an EXIF or TIFF orientation (1 to 8) of an (H, W, ...) array."""
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, 0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def type_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the lowest and highest value of a number type, infinite for floats."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return float(limits.min), float(limits.max)
    return float("-inf"), float("inf")
