"""The one place where decoded pixels become model input.

An image goes through reader -> window -> [0, 1] -> channels -> resize, in this order:

* reader: which frame of a file with several, and the options of the formats of plugins.
* window: 8-bit images span 0 to 255. An image that says itself what to show, such as a DICOM file
  with a window, spans that. Deeper integers and floats without such a word are clipped to a stored
  window per kind, fixed or the 0.5 and 99.5 percentiles of a sample of images. MONOCHROME1 is
  inverted after it.
* channels: grey is repeated; RGB becomes one channel by the luma weights of ITU-R BT.601; an image
  that has the wanted number keeps them.
* resize: to a square of ``img_size`` pixels, aspect not kept, by Pillow's antialiased bilinear
  filter, which cannot overshoot.

The result is uint8 while every image holds 8 bits of grey levels, else float32 in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from daptkit.data.image import DecodedImage
from daptkit.data.pixels import type_range
from daptkit.errors import DataError

_VERSION = 2
_GRID_TOLERANCE = 0.05
_LUMA = (0.299, 0.587, 0.114)
_KINDS = {"u": "int", "i": "int", "f": "float"}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How pixels of any depth, channels and size become model input.

    Args:
        img_size: edge S of the square result, pixels.
        in_chans: channels C of the result.
        windows: ``"int"`` (deeper than 8 bit), ``"float"`` and ``"display"`` (images that say
            what to show, with more than 8 bits of levels) to the (low, high) that become 0 and 1.
            Empty: every image is 8 bit and the result is uint8.
        frames: ``"first"``, ``"middle"``, ``"all"`` or a number: the frames of files with several;
            ``None`` where none was named.
        readers: formats of plugins that were used: name to package and options.
    """

    img_size: int
    in_chans: int
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    frames: str | None = None
    readers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the result: uint8, or float32 where an image may be deeper than 8 bit."""
        return np.dtype(np.float32 if self.windows else np.uint8)

    def to_json(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_json` turns into an equal conversion."""
        return {
            "version": _VERSION,
            "img_size": self.img_size,
            "in_chans": self.in_chans,
            "windows": {kind: list(window) for kind, window in self.windows.items()},
            "frames": self.frames,
            "readers": {name: dict(used) for name, used in self.readers.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Conversion:
        """Rebuild a conversion.

        Raises:
            DataError: written by another version, or values are missing or malformed.
        """
        if values.get("version") == 1:  # before frames and readers were recorded
            values = {**values, "frames": None, "readers": {}}
        elif values.get("version") != _VERSION:
            raise DataError(
                f"image conversion of version {values.get('version')!r}; this daptkit reads "
                f"{_VERSION}. Use the daptkit that wrote the model."
            )
        try:
            windows = {
                str(kind): (float(low), float(high))
                for kind, (low, high) in values["windows"].items()
            }
            frames = values["frames"]
            return cls(
                img_size=int(values["img_size"]),
                in_chans=int(values["in_chans"]),
                windows=windows,
                frames=None if frames is None else str(frames),
                readers={
                    str(name): {"package": str(used["package"]), "options": dict(used["options"])}
                    for name, used in values["readers"].items()
                },
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"malformed image conversion: {error!r}.") from error


def depth_kind(image: DecodedImage) -> str | None:
    """Return which window an image needs: ``"int"``, ``"float"``, ``"display"``, or none.

    An image that says what to show needs none if that lies on a grid of 256 levels: rounding to 8
    bit then loses nothing.
    """
    if image.array.dtype == np.uint8:
        return None
    if not image.display:
        return _KINDS[image.array.dtype.kind]
    levels = 255.0 * displayed(image.array, image.value_range)
    return "display" if (np.abs(levels - np.round(levels)) > _GRID_TOLERANCE).any() else None


def convert_image(image: DecodedImage, conversion: Conversion) -> npt.NDArray[Any]:
    """Convert one decoded image, (C, S, S) in the conversion's type.

    Raises:
        DataError: no window for the image's depth, or its channels do not fit; no path in it.
    """
    array = image.array if image.array.ndim == 3 else image.array[..., np.newaxis]
    array = _scaled(array, image, conversion)
    if image.photometric == "MONOCHROME1":
        array = (255 if array.dtype == np.uint8 else np.float32(1.0)) - array
    size = conversion.img_size
    planes = [_resized(plane, size) for plane in _planes(array, conversion.in_chans)]
    return np.broadcast_to(np.stack(planes), (conversion.in_chans, size, size))


def convert_rows(array: npt.NDArray[Any], conversion: Conversion) -> npt.NDArray[Any]:
    """Convert (N, H, W) or (N, H, W, C) images of one array, (N, C', S, S).

    8-bit images that have the right size are only copied.

    Raises:
        DataError: as :func:`convert_image`.
    """
    batch = array if array.ndim == 4 else array[..., np.newaxis]
    size, chans = conversion.img_size, conversion.in_chans
    fits = batch.shape[1:3] == (size, size) and batch.shape[3] in (1, chans)
    if fits and batch.dtype == np.uint8 and not conversion.windows:
        moved = np.moveaxis(batch, -1, 1)
        return np.broadcast_to(moved, (len(moved), chans, size, size))
    out = np.empty((len(batch), chans, size, size), conversion.dtype)
    value_range = type_range(batch.dtype)
    for row, pixels in enumerate(batch):
        out[row] = convert_image(DecodedImage(array=pixels, value_range=value_range), conversion)
    return out


def _scaled(
    array: npt.NDArray[Any], image: DecodedImage, conversion: Conversion
) -> npt.NDArray[Any]:
    """Scale (H, W, C) pixels of any depth to the conversion's type, black to white."""
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255) if conversion.windows else array
    if image.display:
        shown = displayed(array, image.value_range)
        if conversion.windows:
            return shown.astype(np.float32)
        return np.round(255.0 * shown).astype(np.uint8)
    kind = _KINDS[array.dtype.kind]
    if kind not in conversion.windows:
        have = ", ".join(("8-bit", *conversion.windows))
        raise DataError(
            f"{array.dtype} pixels, for which the fitted conversion has no window (it has {have})"
        )
    return displayed(array, conversion.windows[kind]).astype(np.float32)


def displayed(array: npt.NDArray[Any], window: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Return pixels in [0, 1], clipped, where ``window`` is black to white."""
    low, high = window
    scaled: npt.NDArray[np.float64] = (array.astype(np.float64) - low) / (high - low)
    return scaled.clip(0.0, 1.0)


def _planes(array: npt.NDArray[Any], in_chans: int) -> list[npt.NDArray[Any]]:
    """Return the (H, W) planes to resize: ``in_chans`` of them, or one that is repeated."""
    channels = array.shape[-1]
    if channels in (1, in_chans):
        return [array[..., channel] for channel in range(channels)]
    if channels == 3 and in_chans == 1:
        return [_luma(array)]
    raise DataError(f"{channels} channels do not fit a model of {in_chans}; set --in-chans")


def _luma(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(array)).convert("L"))
    return (array @ np.asarray(_LUMA, np.float32)).clip(0.0, 1.0)


def _resized(plane: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Resize one (H, W) uint8 or float32 plane to (size, size)."""
    if plane.shape == (size, size):
        return plane
    image = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
