"""One slice of a NIfTI volume, upright as a radiologist sees it.

The patient's right is on the left of axial and coronal slices, anterior is at the top of axial and
on the left of sagittal slices, superior is at the top of coronal and sagittal slices. Slices are
numbered towards the patient's right, anterior and superior. Oblique volumes are cut along the
closest stored axis, and voxels that are not square are shown as stored: nothing is resampled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.fileslice import fileslice

from daptkit.errors import DataError
from daptkit.reader import MAX_PIXELS, DecodedImage, on_black, select_frame, type_range
from daptkit_nifti.header import Volume, read_header
from daptkit_nifti.packed import unpacked
from daptkit_nifti.plugin import AXES, NiftiOptions

_LARGEST = 2**62


def read_slice(path: Path, frame: int | None, options: NiftiOptions) -> DecodedImage:
    """Read one slice.

    Args:
        path: NIfTI file.
        frame: slice from 0, towards the patient's right, anterior or superior; ``None`` for a file
            with one.
        options: plane, volume, window, and what happens to NaN and to files without orientation.

    Returns:
        (H, W) values after the header's scaling, integers where they all are, or (H, W, 3) uint8.

    Raises:
        DataError: damaged, of an unknown kind, too large, NaN voxels, or several slices or volumes
            and none named; no path and no content of the header in the text.
    """
    volume = read_header(path, assume_orientation=options.unoriented == "assume")
    slices = _count(volume, options)
    number = _select_volume(volume.shape[3], options.volume)
    stored = _read_plane(path, volume, options.axis, select_frame(slices, frame), number)
    if stored.dtype.names:
        return DecodedImage(
            array=_colours(stored, options),
            value_range=(0.0, 255.0),
            photometric="RGB",
            frames=slices,
        )
    values, value_range = _values(stored, volume.scaling)
    values = _finite(values, options)
    limits = options.limits
    return DecodedImage(
        array=values if limits is None else values.astype(np.float32),
        value_range=limits or value_range,
        frames=slices,
        display=limits is not None,
    )


def count_slices(path: Path, options: NiftiOptions) -> int:
    """Return the number of slices of a file in the plane of the options, from its header.

    Raises:
        DataError: as :func:`read_slice`, of the header.
    """
    return _count(read_header(path, assume_orientation=options.unoriented == "assume"), options)


def _count(volume: Volume, options: NiftiOptions) -> int:
    lengths = [volume.shape[stored] for stored, _ in volume.axes]
    slices = lengths[AXES.index(options.axis)]
    if slices > 1 and lengths.count(1) == 1:
        plane = AXES[lengths.index(1)]
        raise DataError(
            f"its only slice is {plane}, not {options.axis}: --reader-options nifti.axis={plane}"
        )
    return slices


def _select_volume(volumes: int, volume: int | None) -> int:
    if volume is None and volumes > 1:
        raise DataError(f"{volumes} volumes; name one from 0: --reader-options nifti.volume=0")
    if volume is not None and volume >= volumes:
        raise DataError(f"no volume {volume}; the file has {volumes}, counted from 0")
    return volume or 0


def _read_plane(path: Path, volume: Volume, axis: str, frame: int, number: int) -> npt.NDArray[Any]:
    """Return (H, W) stored voxels of a slice, upright."""
    cut = AXES.index(axis)
    across, down = (volume.axes[other] for other in range(3) if other != cut)
    width, height = volume.shape[across[0]], volume.shape[down[0]]
    if width * height > MAX_PIXELS:
        raise DataError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    stored, reverse = volume.axes[cut]
    index: list[Any] = [slice(None), slice(None), slice(None), number]
    index[stored] = volume.shape[stored] - 1 - frame if reverse else frame
    with unpacked(path, volume.end) as file:
        plane: npt.NDArray[Any] = fileslice(
            file, tuple(index), volume.shape, volume.dtype, volume.offset, order="F"
        )
    if across[0] < down[0]:
        plane = plane.T
    # Rows run down and columns to the patient's left or back: against the patient's axes.
    plane = plane if down[1] else plane[::-1]
    plane = plane if across[1] else plane[:, ::-1]
    return np.ascontiguousarray(plane)


def _colours(stored: npt.NDArray[Any], options: NiftiOptions) -> npt.NDArray[np.uint8]:
    """Return (H, W, 3) of RGB voxels, or of RGBA voxels on black."""
    if options.limits is not None:
        raise DataError("RGB voxels have no window; leave nifti.window out")
    channels = stored.view(np.uint8).reshape(*stored.shape, -1)
    return channels if channels.shape[-1] == 3 else on_black(channels)


def _values(
    stored: npt.NDArray[Any], scaling: tuple[float, float] | None
) -> tuple[npt.NDArray[Any], tuple[float, float]]:
    """Return the values of stored voxels, and the lowest and highest possible.

    A whole slope and intercept keep integers: a CT stored with the intercept -1024 and one stored
    in Hounsfield units are images of one kind.
    """
    # Machine byte order, and no type wider than 8 bytes: neither Pillow nor torch know others.
    dtype = stored.dtype.newbyteorder("=") if stored.dtype.itemsize <= 8 else np.dtype(np.float64)
    values = stored.astype(dtype)
    if scaling is None:
        return values, type_range(values.dtype)
    slope, inter = scaling
    low, high = sorted(slope * limit + inter for limit in type_range(values.dtype))
    whole = slope.is_integer() and inter.is_integer() and max(-low, high) < _LARGEST
    if values.dtype.kind in "iu" and whole:
        return values.astype(np.int64) * int(slope) + int(inter), (low, high)
    return values.astype(np.float64) * slope + inter, (low, high)


def _finite(values: npt.NDArray[Any], options: NiftiOptions) -> npt.NDArray[Any]:
    bad = ~np.isfinite(values)
    count = int(bad.sum())
    if not count:
        return values
    if options.nan == "refuse":
        raise DataError(
            f"{count} voxels of the slice are NaN or infinite; --reader-options nifti.nan=low "
            "gives them the lowest value of the slice"
        )
    if count == bad.size:
        raise DataError("every voxel of the slice is NaN or infinite")
    return np.where(bad, values[~bad].min(), values)
