"""MedMNIST-style ``.npz`` archives: ``{train,val,test}_{images,labels}``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.data.folder import SPLITS
from daptkit.data.image import Log
from daptkit.data.refs import ArrayRef
from daptkit.data.table import ImageTable
from daptkit.errors import DataError


def read_npz(path: Path, *, domain: str, labelled: bool, log: Log) -> ImageTable:
    """Load an archive; its images stay in memory. Pickled objects are refused.

    Images are (N, H, W) or (N, H, W, C); labels (N,) or (N, 1) integers, whole floats or text.

    Args:
        path: the archive.
        domain: name for messages.
        labelled: whether label arrays are read.
        log: told of label arrays that are not read.

    Raises:
        DataError: a damaged archive, missing keys, shapes that do not fit, or several labels per
            image.
    """
    names: list[str] = []
    refs: list[ArrayRef] = []
    splits: list[str] = []
    labels: list[str] = []
    arrays = _load(path, labelled=labelled)
    present = [split for split in SPLITS if f"{split}_images" in arrays]
    if not present:
        raise DataError(
            f"'{path}' has no images: expected keys such as 'train_images', "
            f"found {', '.join(sorted(arrays)) or 'none'}."
        )
    for split in present:
        images = _check_images(path, f"{split}_images", arrays[f"{split}_images"])
        names += [f"{split}/{row}" for row in range(len(images))]
        refs += [ArrayRef(images, row) for row in range(len(images))]
        splits += [split] * len(images)
        if labelled:
            labels += _labels(path, f"{split}_labels", arrays, len(images))
    if not names:
        raise DataError(f"'{path}' holds no images (the {domain}).")
    if not labelled and any(f"{split}_labels" in arrays for split in SPLITS):
        log(f"labels of the {domain} are ignored.")
    return ImageTable(
        domain=domain,
        names=tuple(names),
        refs=tuple(refs),
        splits=tuple(splits),
        labels=tuple(labels) if labelled else None,
    )


def _load(path: Path, *, labelled: bool) -> dict[str, npt.NDArray[Any]]:
    """Load the arrays that are used; label arrays of an unlabelled domain stay unread."""
    wanted = {f"{split}_{part}" for split in SPLITS for part in ("images", "labels")}
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise DataError(f"'{path}' is a single array, not an .npz archive.")
            return {
                key: archive[key]
                if key in wanted and (labelled or key.endswith("_images"))
                else np.empty(0)
                for key in archive.files
            }
    except DataError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"'{path}' is not a readable .npz archive: {error}.") from error


def _check_images(path: Path, key: str, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if images.dtype == np.bool_:
        images = images.astype(np.uint8) * np.uint8(255)
    if images.dtype.kind not in "iuf":
        raise DataError(f"'{path}': '{key}' holds {images.dtype}, not numbers.")
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise DataError(
            f"'{path}': '{key}' has shape {images.shape}, not (images, height, width) or "
            "(images, height, width, channels)."
        )
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 4:
        raise DataError(
            f"'{path}': '{key}' has shape {images.shape}; channels come last: "
            "(images, height, width, channels)."
        )
    return images


def _labels(path: Path, key: str, arrays: dict[str, npt.NDArray[Any]], count: int) -> list[str]:
    if key not in arrays:
        raise DataError(f"'{path}' has no '{key}', and labels are needed.")
    labels = arrays[key]
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"'{path}': '{key}' has {labels.shape[1]} labels per image; daptkit takes one class "
            "per image. Choose one of the labels."
        )
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise DataError(f"'{path}': '{key}' has shape {labels.shape} for {count} images.")
    flat = labels.reshape(-1)
    if flat.dtype.kind == "f":
        if not np.array_equal(flat, np.round(flat)):
            raise DataError(f"'{path}': '{key}' holds fractions; classes are whole numbers.")
        flat = flat.astype(np.int64)
    if flat.dtype.kind not in "biuU":
        raise DataError(f"'{path}': '{key}' holds {flat.dtype}, not class numbers or names.")
    return [str(label).strip() for label in flat.tolist()]
