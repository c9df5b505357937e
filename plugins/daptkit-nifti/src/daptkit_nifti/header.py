"""What a NIfTI header says of its voxels. No text of a header is read."""

from __future__ import annotations

import gzip
import logging
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError

from daptkit.errors import DataError
from daptkit_nifti.packed import gunzip_errors, is_gzip

_SIZES: dict[int, Any] = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
_MAGIC = {348: (344, b"n+1\0"), 540: (4, b"n+2\0\r\n\x1a\n")}
_PAIR = {348: (344, b"ni1\0"), 540: (4, b"ni2\0\r\n\x1a\n")}
_LONGEST = max(_SIZES)
_EXTENSION_FLAG = 4
_SMALLEST_DETERMINANT = 1e-3

# What nibabel repairs in a header, such as a qfac of 0, is no news for the user.
_SILENT = logging.Logger("daptkit_nifti.header", logging.CRITICAL + 1)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Where the voxels of a file are, and how they lie in the patient.

    Args:
        shape: voxels along the stored axes, and the number of volumes.
        dtype: type of a stored voxel.
        offset: bytes before the first voxel.
        scaling: slope and intercept that turn a stored value into a value; ``None``: they are one.
        axes: for the patient's axes to the right, anterior and superior: the stored axis that is
            closest, and whether it runs the other way.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    offset: int
    scaling: tuple[float, float] | None
    axes: tuple[tuple[int, bool], ...]

    @property
    def end(self) -> int:
        """Bytes up to the end of the last voxel."""
        count = 1
        for length in self.shape:
            count *= length
        return self.offset + count * self.dtype.itemsize


def is_nifti(start: bytes) -> bool:
    """Return whether a file that starts with these bytes is NIfTI in one file, packed or not."""
    if is_gzip(start):
        try:
            start = zlib.decompressobj(wbits=31).decompress(start, _LONGEST)
        except zlib.error:
            return False
    size = _header_size(start)
    return size is not None and _has(start, _MAGIC[size])


def read_header(path: Path, *, assume_orientation: bool) -> Volume:
    """Read where the voxels of a file are.

    Args:
        path: NIfTI-1 or NIfTI-2 in one file, packed by gzip or not, whatever its name.
        assume_orientation: take a file without orientation as left, anterior, superior.

    Raises:
        DataError: the file is empty, cut, no NIfTI, of an unknown type, or its header contradicts
            itself; no path and no content of the header in the text.
    """
    header = _parse(_start(path))
    slope, inter = _scaling(header)
    return Volume(
        shape=_shape(header),
        dtype=_voxel_type(header),
        offset=_offset(header),
        scaling=None if (slope, inter) == (1.0, 0.0) else (slope, inter),
        axes=_axes(_affine(header, assume=assume_orientation)),
    )


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(_LONGEST)
    if is_gzip(start):
        with gunzip_errors(), gzip.open(path) as stream:
            start = stream.read(_LONGEST)
    return start


def _header_size(start: bytes) -> int | None:
    """Return the header size that the first bytes state, in either byte order."""
    return next((size for size in _SIZES if _byte_order(start, size)), None)


def _byte_order(start: bytes, size: int) -> str:
    return next((order for order in "<>" if start[:4] == struct.pack(f"{order}i", size)), "")


def _has(start: bytes, place: tuple[int, bytes]) -> bool:
    offset, magic = place
    return start[offset : offset + len(magic)] == magic


def _parse(start: bytes) -> Any:
    if not start:
        raise DataError("empty file")
    size = _header_size(start)
    if size is None:
        raise DataError("not a NIfTI file")
    if len(start) < size:
        raise DataError(f"truncated: {len(start)} bytes of a header of {size}")
    if _has(start, _PAIR[size]):
        raise DataError(
            "the header of a .hdr/.img pair, without voxels; save the pair as one .nii file"
        )
    if not _has(start, _MAGIC[size]):
        raise DataError("not a NIfTI file, or a header of Analyze; save it as NIfTI")
    return _SIZES[size](start[:size], endianness=_byte_order(start, size), check=False)


def _shape(header: Any) -> tuple[int, int, int, int]:
    dimensions, *lengths = (int(value) for value in header["dim"])
    if not 1 <= dimensions <= 7 or any(length < 1 for length in lengths[:dimensions]):
        raise DataError("damaged header: its dimensions are not 1 to 7 positive numbers")
    shape = lengths[:dimensions]
    if dimensions < 2 or any(length > 1 for length in shape[4:]):
        shown = " x ".join(map(str, shape))
        raise DataError(f"voxels of {shown} are neither an image, a volume nor several volumes")
    x, y, z, volumes = (*shape, 1, 1)[:4]
    return x, y, z, volumes


def _voxel_type(header: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        dtype = np.dtype(np.void)
    if dtype.kind == "c":
        raise DataError("complex voxels; save their magnitude")
    if dtype.kind not in "iuf" and not dtype.names:
        raise DataError(f"voxels of NIfTI data type {int(header['datatype'])} cannot be read")
    return dtype


def _offset(header: Any) -> int:
    offset = float(header["vox_offset"])
    if not np.isfinite(offset) or offset < header.structarr.nbytes + _EXTENSION_FLAG:
        raise DataError("damaged header: its voxels do not start behind it")
    return int(offset)


def _scaling(header: Any) -> tuple[float, float]:
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise DataError("damaged header: the intercept of its scaling is not finite") from error
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def _affine(header: Any, *, assume: bool) -> npt.NDArray[np.float64]:
    try:
        header.check_fix(logger=_SILENT)
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise DataError("damaged header: its orientation cannot be read") from error
    if not (header["sform_code"] or header["qform_code"] or assume):
        raise DataError(
            "the header does not say which side is left (sform and qform have code 0); "
            "--reader-options nifti.unoriented=assume takes the axes as left, anterior, superior"
        )
    return affine


def _axes(affine: npt.NDArray[np.float64]) -> tuple[tuple[int, bool], ...]:
    """Return the stored axis of each of the patient's, and whether it runs the other way."""
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        raise DataError("damaged header: its orientation has an axis without length")
    if abs(np.linalg.det(columns / lengths)) < _SMALLEST_DETERMINANT:
        raise DataError("damaged header: its orientation has two equal axes")
    found = io_orientation(affine)
    stored = {int(axis): (place, bool(way < 0)) for place, (axis, way) in enumerate(found)}
    return tuple(stored[axis] for axis in range(3))
