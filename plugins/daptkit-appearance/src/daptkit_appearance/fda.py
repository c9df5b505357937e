"""Fourier domain adaptation of sites (arXiv:2004.05498)."""

from __future__ import annotations

from decimal import ROUND_UP, Context, Decimal
from typing import Any

import torch
from torch import Tensor

from daptkit.errors import UsageError
from daptkit.method import FitContext, Method, TaskInfo
from daptkit_appearance.plugin import FDAOptions
from daptkit_appearance.sample import MAX_CHANNELS, check_samples

MAX_FREQUENCY = 64
"""Cycles per image up to which amplitudes are kept; their buffer has one shape for all images."""
MAX_GAIN = 5.0
"""Largest factor of an amplitude, and the inverse of the smallest."""
MIN_AMPLITUDE = 1e-5
"""Amplitude per pixel below which a site is taken to have nothing at a frequency."""

_CHUNK = 16


def frequencies(height: int, width: int, band: float) -> int:
    """Return b = floor(band * min(H, W)), the highest frequency matched, in cycles per image.

    Raises:
        UsageError: more than 64.
    """
    b = int(band * min(height, width))
    if b > MAX_FREQUENCY:
        raise UsageError(
            f"fda.band {band:g} reaches {b} cycles per image at {height}x{width} pixels; at most"
            f" {MAX_FREQUENCY}: choose a smaller one."
        )
    return b


def smallest_band(height: int, width: int) -> float:
    """Return the smallest band of two digits that reaches 1 cycle per image, 1 / min(H, W)."""
    return float(Context(prec=2, rounding=ROUND_UP).divide(Decimal(1), Decimal(min(height, width))))


def low_spectrum(images: Tensor, b: int) -> Tensor:
    """Return the coefficients of frequencies -b..b (down) and 0..b (across), over H W.

    Args:
        images: (N, C, H, W).
        b: below half of H and W.

    Returns:
        (N, C, 2 b + 1, b + 1), complex; real images hold the other half as its conjugate.
    """
    spectrum = torch.fft.rfft2(images, norm="forward")[..., : b + 1]
    return (
        torch.cat([spectrum[..., -b:, :], spectrum[..., : b + 1, :]], -2)
        if b
        else spectrum[..., :1, :]
    )


def mean_amplitude(images: Tensor, b: int) -> Tensor:
    """Return the mean amplitude over images at each low frequency, (C, 2 b + 1, b + 1)."""
    parts = [low_spectrum(part.double(), b).abs().sum(0) for part in torch.split(images, _CHUNK)]
    total = torch.stack(parts).sum(0)
    return total / len(images)


def match_amplitudes(
    images: Tensor, source: Tensor, target: Tensor, *, mode: str = "ratio", strength: float = 1.0
) -> Tensor:
    """Return images whose low-frequency amplitudes are brought to the source's; phases are kept.

    With F = A exp(i phi) an image's coefficient, M_s and M_t the sites' mean amplitudes, A becomes
    (1 - strength) A + strength A', where ``ratio`` takes A' = A M_s / M_t, which leaves images of
    equal sites as they are, and ``swap`` takes A' = M_s, as published but for the mean over the
    site in the place of one image's amplitude. A' / A is kept within [1/5, 5], so that nothing
    comes of no amplitude; where a site has none nothing changes.

    Args:
        images: (N, C, H, W).
        source: (C, 2 b + 1, b + 1) mean amplitudes per pixel, as of :func:`mean_amplitude`.
        target: the same of the target.
        mode: ``"ratio"`` or ``"swap"``.
        strength: in [0, 1].

    Reference: Yang, Soatto 2020, "FDA: Fourier domain adaptation for semantic segmentation",
    arXiv:2004.05498.
    """
    b = source.shape[-1] - 1
    low = low_spectrum(images, b)
    present = (source >= MIN_AMPLITUDE) & (target >= MIN_AMPLITUDE)
    if mode == "swap":
        gain = source / low.abs().clamp(min=MIN_AMPLITUDE)
    else:
        gain = source / target.clamp(min=MIN_AMPLITUDE)
    gain = torch.where(present, gain.clamp(1 / MAX_GAIN, MAX_GAIN), 1.0)
    change = strength * (gain - 1) * low
    # Only what changes is transformed back: an unchanged image comes out to the last bit.
    height, width = images.shape[-2:]
    spectrum = change.new_zeros((*change.shape[:2], height, width // 2 + 1))
    spectrum[..., : b + 1, : b + 1] = change[..., b:, :]
    if b:
        spectrum[..., -b:, : b + 1] = change[..., :b, :]
    matched: Tensor = images + torch.fft.irfft2(spectrum, s=(height, width), norm="forward")
    return matched


class FDA(Method):
    """Give target images the source site's amplitudes of low frequencies.

    Args:
        options: see :class:`daptkit_appearance.plugin.FDAOptions`.
        task: not used.
    """

    options: FDAOptions
    source_amplitude: Tensor
    target_amplitude: Tensor
    size: Tensor

    def __init__(self, options: FDAOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        shape = (MAX_CHANNELS, 2 * MAX_FREQUENCY + 1, MAX_FREQUENCY + 1)
        self.register_buffer("source_amplitude", torch.zeros(shape))
        self.register_buffer("target_amplitude", torch.zeros(shape))
        # Channels and highest frequency in use.
        self.register_buffer("size", torch.zeros(2, dtype=torch.int64))

    @torch.no_grad()
    def fit_images(self, source: Tensor, target: Tensor) -> None:
        """Work out the mean amplitudes of both sites.

        Raises:
            UsageError: a band of more frequencies than there is room for.
            DataError: images that cannot be used.
        """
        check_samples("fda", source, target)
        b = frequencies(source.shape[2], source.shape[3], self.options.band)
        self.size.copy_(torch.tensor([source.shape[1], b]))
        for images, kept in ((source, self.source_amplitude), (target, self.target_amplitude)):
            self._used(kept).copy_(mean_amplitude(images, b))

    def _used(self, kept: Tensor) -> Tensor:
        channels, b = self.size.tolist()
        return kept[:channels, MAX_FREQUENCY - b : MAX_FREQUENCY + b + 1, : b + 1]

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        """Return target images (N, C, H, W) with the source's amplitudes; others as they are."""
        if domain != "target" or self.options.strength == 0 or not int(self.size[0]):
            return images
        matched = match_amplitudes(
            images.float(),
            self._used(self.source_amplitude),
            self._used(self.target_amplitude),
            mode=self.options.mode,
            strength=self.options.strength,
        )
        return matched.clamp(0.0, 1.0)

    def on_fit_start(self, ctx: FitContext) -> None:
        """Tell if nothing but the mean is matched: by the band, or as a site has nothing else."""
        if int(self.size[0]) and not int(self.size[1]):
            band = smallest_band(*ctx.images("target", 1).shape[2:])
            ctx.note(
                f"fda: at this image size a band of {self.options.band:g} reaches no frequency but"
                f" the mean brightness; --fda.band {band:g} reaches 1 cycle per image."
            )
        if self.report()["frequencies_left_alone"]:
            ctx.note(
                "fda: left some frequencies of the target's images as they are: a site's images"
                " have about no amplitude there."
            )

    def report(self) -> dict[str, Any]:
        """Return the highest frequency matched and how amplitudes of the sites compare."""
        s, t = self._used(self.source_amplitude), self._used(self.target_amplitude)
        known = (s >= MIN_AMPLITUDE) & (t >= MIN_AMPLITUDE)
        ratio = s[known] / t[known]
        return {
            "cycles_per_image": int(self.size[1]),
            "smallest_ratio": round(float(ratio.min()), 4) if ratio.numel() else None,
            "largest_ratio": round(float(ratio.max()), 4) if ratio.numel() else None,
            "frequencies_left_alone": int((~known).sum()),
        }


__all__ = [
    "FDA",
    "frequencies",
    "low_spectrum",
    "match_amplitudes",
    "mean_amplitude",
    "smallest_band",
]
