"""From a decoded image to the pixels of the file that another site would have written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.data.convert import displayed
from daptkit.data.image import DecodedImage
from daptkit.data.shifts import Levels, apply_shift
from daptkit.data.stains import StainShift, draw_stain
from daptkit.errors import DataError, UsageError
from daptkit.scanner import ScannerShift

_SITE, _IMAGES = 0, 1
_TOP = {8: 255.0, 16: 65535.0}
_KINDS = {"u": "int", "i": "int", "f": "float"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Which pixel values are black and white, before and after; one for the whole site.

    Args:
        read: those of the images that are read; ``None`` where each image says its own.
        written: those of the files that are written.
        bits: depth of the files, 8 or 16.
    """

    read: tuple[float, float] | None
    written: tuple[float, float]
    bits: int

    @property
    def kept(self) -> bool:
        """Whether a model reads a level alike before and after: 8 bit always span the levels."""
        return self.bits == 8 or self.read == self.written

    def levels(self, image: DecodedImage) -> Levels:
        """Return an image's pixels from black 0 to white 1, clipped, MONOCHROME1 inverted."""
        levels = displayed(image.array, self.read or image.value_range)
        return 1.0 - levels if image.photometric == "MONOCHROME1" else levels

    def pixels(self, levels: Levels) -> npt.NDArray[Any]:
        """Return levels in [0, 1] as the pixel values of a file, rounded."""
        black, white = self.written
        return np.round(black + levels * (white - black)).astype(f"uint{self.bits}")

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``read`` is ``"each image's own"`` where there is not one."""
        read = "each image's own" if self.read is None else list(self.read)
        return {"read": read, "written": list(self.written), "bits": self.bits}


def site_scales(windows: Mapping[str, tuple[float, float]]) -> dict[str, Scale]:
    """Return the scale of each kind of image, by a name of :func:`pixel_kind`.

    Unsigned integers keep their values, so that old and new site share a window. What no PNG can
    hold, negative values and fractions, is spread over the 16 bits instead.

    Args:
        windows: those of :class:`daptkit.data.convert.Conversion`.
    """
    deep = (0.0, _TOP[16])
    scales = {"8-bit": Scale(read=(0.0, _TOP[8]), written=(0.0, _TOP[8]), bits=8)}
    bits = 16 if "display" in windows else 8
    scales["display"] = Scale(read=None, written=(0.0, _TOP[bits]), bits=bits)
    for kind, window in windows.items():
        if kind != "display":
            fits = kind == "int" and deep[0] <= window[0] and window[1] <= deep[1]
            scales[kind] = Scale(read=window, written=window if fits else deep, bits=16)
    return scales


def pixel_kind(image: DecodedImage) -> str:
    """Return ``"8-bit"``, ``"display"`` (the file says what to show), ``"int"`` or ``"float"``."""
    if image.array.dtype == np.uint8:
        return "8-bit"
    return "display" if image.display else _KINDS[image.array.dtype.kind]


class Rescanner:
    """The scanner of a new site.

    Args:
        shift: what it changes.
        scales: scale of each kind of image, from :func:`site_scales`.
        seed: of the site's stain and of each image's bias field and noise, which depend on the
            image's number too and on nothing else.

    Attributes:
        stain: the stains drawn for the site; ``None`` where the shift has none.
    """

    def __init__(self, shift: ScannerShift, scales: Mapping[str, Scale], seed: int) -> None:
        self.shift, self.scales, self._seed = shift, dict(scales), seed
        self.stain: StainShift | None = None
        if shift.stain:
            self.stain = draw_stain(shift.stain, np.random.default_rng((seed, _SITE)))

    def rescan(self, image: DecodedImage, number: int) -> npt.NDArray[Any]:
        """Return the new site's pixels of an image, (H, W) or (H, W, 3), uint8 or uint16.

        Args:
            image: as decoded.
            number: number of the image at the old site.

        Raises:
            DataError: its channels or its depth; the message is the reason and holds no path.
            UsageError: a stain, and the image is grey.
        """
        scale = self._scale(image)
        levels = scale.levels(image)
        if levels.ndim == 3 and levels.shape[2] == 1:
            levels = levels[..., 0]
        if levels.ndim == 3 and levels.shape[2] != 3:
            raise DataError(f"{levels.shape[2]} channels, and a PNG holds 1 or 3")
        if self.stain is not None and levels.ndim == 2:
            raise UsageError(
                "a stain changes colours, and there are grey images; leave --stain out, or choose"
                " a preset without one."
            )
        rng = np.random.default_rng((self._seed, _IMAGES, number))
        return scale.pixels(apply_shift(levels, self.shift, rng, stain=self.stain))

    def _scale(self, image: DecodedImage) -> Scale:
        kind = pixel_kind(image)
        if kind not in self.scales:
            raise DataError(
                f"{image.array.dtype} pixels, of which the images that were sampled had none;"
                " name a --window"
            )
        return self.scales[kind]
