"""Draw two synthetic imaging sites as folders of class folders.

Each image is a phantom: an elliptic body with textured organs and, in two of the three classes, a
lesion, which is round (``benign``) or spiculated (``malignant``). The target site sees the same
anatomy through another scanner (less contrast, blurred, noisier), and other prevalences.

    python tests/make_sites.py DIR
    DIR/source/{train,test}/{normal,benign,malignant}/0000.png, DIR/target/... likewise
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Image2D = npt.NDArray[np.float64]  # (H, W), in [0, 1]

CLASSES = ("normal", "benign", "malignant")
TEST_FRACTION = 0.25


@dataclass(frozen=True, kw_only=True)
class Site:
    """How a site sees the phantom, and how common each class is there."""

    name: str
    prevalence: tuple[float, float, float]
    gamma: float
    contrast: float
    offset: float
    blur: float  # standard deviation in pixels of a 64 x 64 image
    noise: float


SOURCE = Site(
    name="source",
    prevalence=(0.34, 0.33, 0.33),
    gamma=1.0,
    contrast=1.0,
    offset=0.0,
    blur=0.0,
    noise=0.02,
)
TARGET = Site(
    name="target",
    prevalence=(0.6, 0.25, 0.15),
    gamma=1.5,
    contrast=0.75,
    offset=0.12,
    blur=0.6,
    noise=0.05,
)


def make_sites(
    out: Path, *, n_source: int = 600, n_target: int = 600, seed: int = 0, size: int = 64
) -> Path:
    """Write both sites under ``out`` and return it.

    Args:
        out: folder to write to.
        n_source: images of the source site, a quarter of them in its test split.
        n_target: images of the target site, likewise.
        seed: seed of everything random; an image depends on it, its site and its number only.
        size: edge of the images in pixels, at least 32.
    """
    for site_number, (site, n_images) in enumerate(((SOURCE, n_source), (TARGET, n_target))):
        for number, (split, label) in enumerate(_plan(site, n_images)):
            rng = np.random.default_rng((seed, site_number, number))
            image = _scan(_phantom(label, size, rng), site, rng)
            folder = out / site.name / split / label
            folder.mkdir(parents=True, exist_ok=True)
            levels = np.round(255 * image).astype(np.uint8)
            Image.fromarray(levels).save(folder / f"{number:04d}.png")
    return out


def _plan(site: Site, n_images: int) -> Iterator[tuple[str, str]]:
    """Yield split and class of each image: the site's prevalence, at least one of each class."""
    n_test = round(TEST_FRACTION * n_images)
    for split, n_split in (("train", n_images - n_test), ("test", n_test)):
        rare = [max(1, round(share * n_split)) for share in site.prevalence[1:]]
        counts = [max(1, n_split - sum(rare)), *rare]
        for label, count in zip(CLASSES, counts, strict=True):
            yield from [(split, label)] * count


def _phantom(label: str, size: int, rng: np.random.Generator) -> Image2D:
    """Return the anatomy without the scanner, drawn at twice the size and averaged down."""
    fine = 2 * size
    y, x = np.mgrid[-1 : 1 : fine * 1j, -1 : 1 : fine * 1j]  # (2H, 2W)
    half_height, half_width = rng.uniform(0.78, 0.92, size=2)
    body = (x / half_width) ** 2 + (y / half_height) ** 2
    image = np.where(body < 1, 0.38 + 0.08 * _texture(fine, 0.06, rng), 0.03)
    image[(body > 0.9) & (body < 1)] += 0.16
    for side in (-1, 1):
        cx, cy = side * rng.uniform(0.34, 0.44), rng.uniform(-0.12, 0.12)
        a, b = rng.uniform(0.2, 0.27), rng.uniform(0.36, 0.46)
        organ = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
        image[organ] = (0.2 + 0.05 * _texture(fine, 0.03, rng))[organ]
    if label != "normal":
        image += 0.45 * _lesion(label, x, y, rng)
    averaged: Image2D = image.reshape(size, 2, size, 2).mean(axis=(1, 3)).clip(0.0, 1.0)
    return averaged


def _lesion(label: str, x: Image2D, y: Image2D, rng: np.random.Generator) -> Image2D:
    """Return the lesion's opacity in [0, 1]: a disc, or a smaller core with thin spikes."""
    reach, angle = rng.uniform(0.05, 0.45), rng.uniform(0, 2 * np.pi)
    dx, dy = x - reach * np.cos(angle), y - reach * np.sin(angle)
    distance, direction = np.hypot(dx, dy), np.arctan2(dy, dx)
    radius = rng.uniform(0.17, 0.22)
    if label == "malignant":
        n_spikes = int(rng.integers(6, 9))
        phase = n_spikes * direction + rng.uniform(0, 2 * np.pi)
        jitter = 1 + 0.15 * np.cos(direction + rng.uniform(0, 2 * np.pi))
        radius = radius * jitter * (0.55 + 1.3 * np.maximum(0.0, np.cos(phase)) ** 3)
    edge = np.clip((radius - distance) / 0.03, 0.0, 1.0)
    opacity: Image2D = edge * rng.uniform(0.85, 1.0)
    return opacity


def _texture(size: int, scale: float, rng: np.random.Generator) -> Image2D:
    """Return smooth noise (size, size) of zero mean and unit variance."""
    noise = rng.standard_normal((size, size))
    smooth: Image2D = ndimage.gaussian_filter(noise, scale * size / 2, mode="wrap")
    smooth -= smooth.mean()
    smooth /= smooth.std()
    return smooth


def _scan(phantom: Image2D, site: Site, rng: np.random.Generator) -> Image2D:
    """Return what the site's scanner makes of the phantom."""
    blurred: Image2D = ndimage.gaussian_filter(phantom, site.blur * len(phantom) / 64)
    seen = site.offset + site.contrast * blurred**site.gamma
    seen = seen + site.noise * rng.standard_normal(seen.shape)
    clipped: Image2D = np.clip(seen, 0.0, 1.0)
    return clipped


def main() -> None:
    """Write both sites to the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Draw two synthetic imaging sites.")
    parser.add_argument("out", type=Path, help="folder to write source/ and target/ to")
    parser.add_argument("--n-source", type=int, default=600, help="images (default: %(default)s)")
    parser.add_argument("--n-target", type=int, default=600, help="images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: %(default)s)")
    options = parser.parse_args()
    make_sites(
        options.out,
        n_source=options.n_source,
        n_target=options.n_target,
        seed=options.seed,
        size=options.size,
    )
    print(options.out)


if __name__ == "__main__":
    main()
