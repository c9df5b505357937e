"""Two synthetic imaging sites whose shift is known: one anatomy, two scanners, two populations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from daptkit.data.phantom import PHANTOM_CLASSES, Image2D, draw_phantom
from daptkit.data.shifts import apply_shift
from daptkit.run import writing
from daptkit.scanner import ScannerShift

TEST_FRACTION = 0.25
MIN_IMAGES = 12
MIN_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class SimulatedSite:
    """What a site's scanner makes of a phantom, and how common each class is among its patients.

    A scan is offset + contrast * blurred^gamma + noise, clipped to [0, 1].

    Args:
        prevalence: shares of normal, benign and malignant, which sum to 1.
        gamma: exponent of the grey levels; above 1 darkens the middle ones.
        contrast: factor on the grey levels.
        offset: grey level of black.
        blur: standard deviation of the Gaussian blur, fraction of the image's edge.
        noise: standard deviation of the white noise, in grey levels.

    Raises:
        ValueError: the prevalences are negative or do not sum to 1.
    """

    prevalence: tuple[float, float, float]
    gamma: float = 1.0
    contrast: float = 1.0
    offset: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if min(self.prevalence) < 0 or abs(sum(self.prevalence) - 1) > 1e-6:
            raise ValueError(f"prevalences {self.prevalence} are no shares of 1")

    def scan(self, phantom: Image2D, rng: np.random.Generator) -> Image2D:
        """Return the scan (H, W) of a phantom (H, W), both in [0, 1]."""
        return apply_shift(phantom, self.shift, rng)

    @property
    def shift(self) -> ScannerShift:
        """The scanner alone."""
        return ScannerShift(
            contrast=self.contrast,
            gamma=self.gamma,
            offset=self.offset,
            blur=self.blur,
            noise=self.noise,
        )


SOURCE_SITE = SimulatedSite(prevalence=(0.34, 0.33, 0.33), noise=0.02)
TARGET_SITE = SimulatedSite(
    prevalence=(0.5, 0.3, 0.2), gamma=1.4, contrast=0.65, offset=0.1, blur=0.01, noise=0.04
)
"""Less contrast, darker middle tones, blurred and noisier; fewer lesions."""


def simulate_sites(
    out: str | Path,
    *,
    n_source: int = 2000,
    n_target: int = 2000,
    seed: int = 0,
    size: int = 48,
    source: SimulatedSite = SOURCE_SITE,
    target: SimulatedSite = TARGET_SITE,
) -> Path:
    """Draw two sites: ``OUT/{source,target}/{train,test}/{normal,benign,malignant}/0000.png``.

    The images are synthetic: phantoms of chest slices, no patient's.

    Args:
        out: folder to write to.
        n_source: images of the source site, a quarter of them in its test split; at least 12.
        n_target: images of the target site, likewise.
        seed: seed of everything random; an image depends on it, its site and its number only.
        size: edge of the images in pixels, at least 32.
        source: scanner and prevalences of the source site.
        target: those of the target site.

    Returns:
        ``out``.

    Raises:
        ValueError: fewer images or pixels than that.
        DaptkitError: the images cannot be written.
    """
    if min(n_source, n_target) < MIN_IMAGES or size < MIN_SIZE:
        raise ValueError(f"at least {MIN_IMAGES} images a site and {MIN_SIZE} pixels an edge")
    root = Path(out)
    sites = (("source", source, n_source), ("target", target, n_target))
    for stream, (name, site, n_images) in enumerate(sites):
        for number, (split, label) in enumerate(_plan(site, n_images)):
            rng = np.random.default_rng((seed, stream, number))
            scan = site.scan(draw_phantom(label, size, rng), rng)
            _save(scan, root / name / split / label / f"{number:04d}.png")
    return root


def _plan(site: SimulatedSite, n_images: int) -> Iterator[tuple[str, str]]:
    """Yield split and class of each image: the site's prevalence, at least one of each class."""
    n_test = round(TEST_FRACTION * n_images)
    for split, n_split in (("train", n_images - n_test), ("test", n_test)):
        lesions = [max(1, round(share * n_split)) for share in site.prevalence[1:]]
        counts = [max(1, n_split - sum(lesions)), *lesions]
        for label, count in zip(PHANTOM_CLASSES, counts, strict=True):
            yield from [(split, label)] * count


def _save(image: Image2D, path: Path) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(255 * image).astype(np.uint8)).save(path)
