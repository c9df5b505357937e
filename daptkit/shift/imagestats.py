"""Numbers that say how an image looks: grey levels, noise, sharpness, resolution, colour."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d, laplace

from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray

QUANTILES = (5, 50, 95)
ROLLOFF = 0.95
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
      lies (windowed, without mean), over half the sampling rate: 1 is the finest that pixels hold.

    Of three channels also ``red_mean``, ``green_mean``, ``blue_mean`` and ``saturation``, the mean
    of (max - min) / max over pixels; of other numbers above 1, ``channel_1_mean`` and so on.
    Constant images have no sharpness and no resolution: NaN.

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
    found["resolution"] = np.where(flat, np.nan, _rolloff(grey))
    return found | _colours(images)


def _rolloff(grey: FloatArray) -> FloatArray:
    """Return the frequency that 95% of the power lies below, over the Nyquist frequency, (N,)."""
    height, width = grey.shape[1:]
    centred = grey - grey.mean(axis=(1, 2), keepdims=True)
    # Without a window the jump between opposite borders passes for fine detail.
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.abs(np.fft.rfft2(centred * window)) ** 2
    power[:, :, 1 : (width + 1) // 2] *= 2.0  # the half of the spectrum that rfft leaves out
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).ravel()
    order = np.argsort(radius, kind="stable")
    total = np.cumsum(power.reshape(len(grey), -1)[:, order], axis=1)
    place = (total < ROLLOFF * total[:, -1:]).sum(axis=1)
    return np.asarray(2.0 * radius[order][np.minimum(place, len(order) - 1)])


def _colours(images: FloatArray) -> dict[str, FloatArray]:
    channels = images.shape[1]
    if channels == 1:
        return {}
    means = images.mean(axis=(2, 3))
    if channels != 3:
        return {f"channel_{c + 1}_mean": means[:, c] for c in range(channels)}
    largest = images.max(axis=1)
    saturation = (largest - images.min(axis=1)) / np.where(largest > 0, largest, 1.0)
    found = {f"{name}_mean": means[:, c] for c, name in enumerate(("red", "green", "blue"))}
    return found | {"saturation": saturation.mean(axis=(1, 2))}
