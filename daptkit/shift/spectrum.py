"""Power spectra of images: how much they hold at which spatial frequency."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from daptkit.errors import DataError
from daptkit.shift.arrays import FloatArray

BANDS = 24
"""Bands of the radial spectrum, equally wide on a logarithmic scale; those without a frequency are
left out."""

_TINY = 1e-12


def power_spectrum(grey: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return frequencies (F,), in cycles per pixel, ascending, and the power at each, (N, F).

    Images are taken without their mean, under a Hann window. Of the frequencies that only differ
    in sign one is listed, with the power of both.

    Args:
        grey: (N, H, W).
    """
    height, width = grey.shape[1:]
    centred = grey - grey.mean(axis=(1, 2), keepdims=True)
    # Without a window the jump between opposite borders passes for fine detail.
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.abs(np.fft.rfft2(centred * window)) ** 2
    power[:, :, 1 : (width + 1) // 2] *= 2.0  # the half of the spectrum that rfft leaves out
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).ravel()
    order = np.argsort(radius, kind="stable")
    return radius[order], np.asarray(power.reshape(len(grey), -1)[:, order])


def radial_spectrum(images: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return spatial frequencies (B,) and log10 of each image's mean power there, (N, B).

    Frequencies run from 1 cycle per image to the finest that pixels hold, which is 1. Power is that
    of the grey image, the mean of the channels: 0 - 4 for white noise of variance 10^-4, at every
    frequency. It falls towards fine detail in any picture; a site with lower resolution falls
    sooner, one with more noise ends on a higher floor.

    Args:
        images: (N, C, H, W) in [0, 1], at least 8 pixels high and wide.

    Reference: Field 1987, "Relations between the statistics of natural images and the response
    properties of cortical cells", doi:10.1364/JOSAA.4.002379.

    Raises:
        DataError: another shape, smaller images, or values that are not finite.
    """
    array = np.asarray(images, dtype=np.float64)
    if array.ndim != 4 or 0 in array.shape or min(array.shape[2:]) < 8:
        raise DataError(f"images must be (N, C, H, W), 8x8 at least, not {array.shape}.")
    if not np.isfinite(array).all():
        raise DataError("images hold values that are NaN or infinite.")
    height, width = array.shape[2:]
    frequency, power = power_spectrum(array.mean(axis=1))
    # How many frequencies a listed one stands for, as power_spectrum counts them.
    ones = np.ones((height, width // 2 + 1))
    ones[:, 1 : (width + 1) // 2] = 2.0
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)).ravel()
    counts = ones.ravel()[np.argsort(radius, kind="stable")]
    lowest = 1.0 / min(height, width)
    edges = np.geomspace(lowest * (1 - 1e-9), 0.5 * (1 + 1e-9), BANDS + 1)
    band = np.searchsorted(edges, frequency, side="right") - 1
    used = [b for b in range(BANDS) if (band == b).any()]
    window = np.hanning(height)[:, None] * np.hanning(width)
    scale = float((window * window).sum())
    levels = [
        np.log10(
            np.maximum(power[:, band == b].sum(axis=1) / counts[band == b].sum() / scale, _TINY)
        )
        for b in used
    ]
    middles = [2.0 * float(frequency[band == b].mean()) for b in used]
    return np.asarray(middles), np.stack(levels, axis=1)
