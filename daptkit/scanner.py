"""What another site's scanner, camera or stain does to an image; torch-free, with its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daptkit.errors import UsageError, did_you_mean
from daptkit.plugin import build_options, option


@dataclass(frozen=True, kw_only=True)
class ScannerShift:
    """How the images of a site differ from those of the site that they are made of.

    An image x in [0, 1] becomes

        y = clip(offset + contrast * (b * R(G(S(x))))^gamma + noise * e, 0, 1)

    with S the stain, G the blur, R the resolution, b the bias field and e white Gaussian noise of
    unit variance. The defaults change nothing. A level is a fraction of the way from black to
    white, whatever the depth of the file.

    Args:
        contrast: factor on the grey levels, in [0.05, 5].
        gamma: exponent of the grey levels, in [0.1, 10]; above 1 darkens the middle ones.
        offset: level of black, in [-1, 1].
        bias_field: largest change of brightness of a smooth field, natural logarithm, in [0, 1];
            0.3 is about 30% either way. Each image has a field of its own, of mean 1.
        blur: standard deviation of a Gaussian, fraction of the shorter edge, in [0, 0.1].
        resolution: pixels of the image to one of the detector, along an edge, in [1, 16].
        noise: standard deviation of white noise, in levels, in [0, 0.5].
        stain: how far the site's stains and lamp are from the ones before, in [0, 1]; for colour
            images. One draw for the whole site.
    """

    contrast: float = option(1.0, "Factor on the grey levels.", low=0.05, high=5.0)
    gamma: float = option(
        1.0, "Exponent of the grey levels; above 1 darkens the middle ones.", low=0.1, high=10.0
    )
    offset: float = option(0.0, "Level of black; black is 0 and white 1.", low=-1.0, high=1.0)
    bias_field: float = option(
        0.0, "Strength of smooth shading: 0.3 is about 30% either way.", low=0.0, high=1.0
    )
    blur: float = option(
        0.0, "Deviation of a Gaussian blur, fraction of the edge.", low=0.0, high=0.1
    )
    resolution: float = option(
        1.0, "Pixels of the image to one of the detector, along an edge.", low=1.0, high=16.0
    )
    noise: float = option(
        0.0, "Deviation of white noise; black is 0 and white 1.", low=0.0, high=0.5
    )
    stain: float = option(
        0.0, "Strength of another stain and lamp, for colour images.", low=0.0, high=1.0
    )


PRESETS: dict[str, ScannerShift] = {
    "other-scanner": ScannerShift(contrast=0.75, gamma=1.3, offset=0.06, blur=0.004, noise=0.015),
    "low-dose": ScannerShift(contrast=0.9, blur=0.002, noise=0.035),
    "old-detector": ScannerShift(
        contrast=0.7, gamma=0.85, offset=0.12, bias_field=0.15, resolution=2.0, noise=0.02
    ),
    "other-coil": ScannerShift(gamma=0.9, bias_field=0.5, noise=0.02),
    "other-stain": ScannerShift(contrast=0.95, blur=0.003, noise=0.01, stain=0.5),
}
"""Name of a site's equipment to its shift."""


def build_shift(preset: str | None, values: Mapping[str, Any]) -> ScannerShift:
    """Return a preset with some of its values replaced.

    Args:
        preset: a name of :data:`PRESETS`, or ``None`` for no change.
        values: field of :class:`ScannerShift` to value.

    Raises:
        UsageError: unknown preset or field, or a value out of bounds.
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(
            f"--preset {preset!r} is not one of {', '.join(PRESETS)}."
            + did_you_mean(preset, PRESETS)
        )
    base = ScannerShift() if preset is None else PRESETS[preset]
    return build_options(ScannerShift, {**dataclasses.asdict(base), **values})
