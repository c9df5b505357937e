"""Numbers that say how an image looks: grey levels, noise, sharpness, resolution, colour."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d, laplace

from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray
from daptkit.shift.spectrum import power_spectrum

QUANTILES = (5, 50, 95)
COLOURS = ("red", "green", "blue")
ROLLOFF = 0.95
LOWEST = 3.0
"""Cycles per image (of its shorter side) up to which a frequency counts as low."""
NOISE_MASK = np.array([1.0, -2.0, 1.0])
"""Second difference: applied along rows and columns it removes every plane."""

_CHUNK = 256
_TINY = 1e-12


def image_statistics(images: npt.ArrayLike) -> dict[str, FloatArray]:
    """Return statistics of each image, name -> (N,); they need no model and no label.

    Of the grey image g, the mean of the channels:

    - ``intensity_mean``, ``intensity_q05``, ``intensity_q50``, ``intensity_q95``;
    - ``contrast``: standard deviation;
    - ``noise``: 1.4826 median |M * g| / 6, M the mask of second differences in both directions
      [[1, -2, 1], [-2, 4, -2], [1, -2, 1]], whose output on white noise of deviation s has
      deviation 6 s; the median leaves edges out;
    - ``sharpness_laplacian``: log10 of variance of the Laplacian / variance of g;
    - ``sharpness_gradient``: log10 of mean squared gradient / variance of g;
    - ``resolution``: spatial frequency, in cycles per pixel, below which 95% of the power spectrum
      lies (windowed, without mean), over half the sampling rate: 1 is the finest that pixels hold;
    - ``low_frequencies``: share of that power up to 3 cycles per image: light and large structures.

    Of three channels also ``red_mean``, its standard deviation ``red_spread``, ``red_balance``, its
    mean less that of all channels, the same of green and blue, and ``saturation``, the mean of
    (max - min) / max over pixels; of other numbers above 1, ``channel_1_mean`` and so on.
    Constant images have no sharpness and no frequencies: NaN.

    Args:
        images: (N, C, H, W) in [0, 1], at least 8 pixels high and wide.

    Reference: Immerkaer 1996, "Fast noise variance estimation", CVIU 64(2) (mask of noise);
    Pertuz et al. 2013, doi:10.1016/j.patcog.2012.11.011 (measures of focus).

    Raises:
        DataError: another shape, smaller images, or values that are not finite.
    """
    array = np.asarray(images)
    if array.ndim != 4 or 0 in array.shape:
        raise DataError(f"images must be (N, C, H, W) with at least one, not {array.shape}.")
    if min(array.shape[2:]) < 8:
        raise DataError(f"images of {array.shape[2]}x{array.shape[3]} are too small: 8x8 at least.")
    parts = [
        _of_chunk(np.asarray(array[first : first + _CHUNK], dtype=np.float64))
        for first in range(0, len(array), _CHUNK)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _of_chunk(images: FloatArray) -> dict[str, FloatArray]:
    if not np.isfinite(images).all():
        raise DataError("images hold values that are NaN or infinite.")
    grey = images.mean(axis=1)  # (N, H, W)
    pixels = (1, 2)
    found: dict[str, FloatArray] = {"intensity_mean": grey.mean(axis=pixels)}
    levels = np.percentile(grey, QUANTILES, axis=pixels)
    found |= {f"intensity_q{q:02d}": level for q, level in zip(QUANTILES, levels, strict=True)}
    variance = grey.var(axis=pixels)
    found["contrast"] = np.sqrt(variance)
    fine = correlate1d(correlate1d(grey, NOISE_MASK, axis=1), NOISE_MASK, axis=2)
    inner = np.abs(fine[:, 1:-1, 1:-1])
    found["noise"] = 1.4826 * np.median(inner, axis=pixels) / 6.0
    curvature = laplace(grey, axes=pixels)[:, 1:-1, 1:-1].var(axis=pixels)
    down, across = np.diff(grey, axis=1)[:, :, :-1], np.diff(grey, axis=2)[:, :-1, :]
    slope = (down * down + across * across).mean(axis=pixels)
    flat = variance <= _TINY
    divisor = np.where(flat, 1.0, variance)
    for name, energy in (("laplacian", curvature), ("gradient", slope)):
        known = ~flat & (energy > 0)
        ratio = np.log10(np.where(known, energy / divisor, 1.0))
        found[f"sharpness_{name}"] = np.where(known, ratio, np.nan)
    resolution, share = _frequencies(grey)
    found["resolution"] = np.where(flat, np.nan, resolution)
    found["low_frequencies"] = np.where(flat, np.nan, share)
    return found | _colours(images)


def _frequencies(grey: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the frequency that 95% of the power lies below and the share of the lowest, (N,)."""
    radius, power = power_spectrum(grey)
    total = np.cumsum(power, axis=1)
    place = (total < ROLLOFF * total[:, -1:]).sum(axis=1)
    resolution = 2.0 * radius[np.minimum(place, len(radius) - 1)]
    lowest = np.searchsorted(radius, LOWEST / min(grey.shape[1:]), side="right")
    share = total[:, lowest - 1] / np.where(total[:, -1] > 0, total[:, -1], 1.0)
    return np.asarray(resolution), np.asarray(share)


def _colours(images: FloatArray) -> dict[str, FloatArray]:
    channels = images.shape[1]
    if channels == 1:
        return {}
    names = COLOURS if channels == 3 else [f"channel_{c + 1}" for c in range(channels)]
    found, grey = {}, images.mean(axis=(1, 2, 3))
    for name, of_channel in zip(names, np.moveaxis(images, 1, 0), strict=True):
        found[f"{name}_mean"] = of_channel.mean(axis=(1, 2))
        found[f"{name}_balance"] = found[f"{name}_mean"] - grey
        found[f"{name}_spread"] = of_channel.std(axis=(1, 2))
    if channels == 3:
        largest = images.max(axis=1)
        saturation = (largest - images.min(axis=1)) / np.where(largest > 0, largest, 1.0)
        found["saturation"] = saturation.mean(axis=(1, 2))
    return found
