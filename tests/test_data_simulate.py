"""The synthetic sites: what is drawn, what the scanners change, and how often each class occurs."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from daptkit.data import PHANTOM_CLASSES, SimulatedSite, simulate_sites
from daptkit.data.phantom import AIR, draw_phantom
from daptkit.data.simulate import SOURCE_SITE, TARGET_SITE
from daptkit.errors import DaptkitError

SIZE = 64


def phantom(label: str, seed: int) -> np.ndarray:
    return draw_phantom(label, SIZE, np.random.default_rng(seed))


def lesion(label: str, seed: int) -> np.ndarray:
    """What the lesion adds: the anatomy of one seed is the same with and without it."""
    return phantom(label, seed) - phantom("normal", seed)


def test_phantoms_have_air_around_a_body_with_two_lungs_and_bone() -> None:
    for seed in range(10):
        image = phantom("normal", seed)
        assert image.shape == (SIZE, SIZE)
        assert 0.0 <= image.min() <= image.max() <= 1.0
        assert image[[0, 0, -1, -1], [0, -1, 0, -1]] == pytest.approx([AIR] * 4)
        middle = image[SIZE // 2 - 4 : SIZE // 2 + 4]
        left, heart, right = middle[:, 16:22], middle[:, 30:36], middle[:, 42:48]
        assert max(np.median(left), np.median(right)) < 0.27 < 0.4 < np.median(heart)
        assert image.max() > 0.7


def test_phantoms_differ_from_seed_to_seed_only() -> None:
    assert np.array_equal(phantom("benign", 3), phantom("benign", 3))
    assert np.abs(phantom("normal", 3) - phantom("normal", 4)).mean() > 0.01


def test_a_benign_lesion_is_a_small_disc_and_a_malignant_one_large_and_ragged() -> None:
    areas = {label: [] for label in ("benign", "malignant")}
    for label, found in areas.items():
        for seed in range(20):
            y, x = np.nonzero(np.abs(lesion(label, seed)) > 0.02)
            found.append(len(x))
            radius = np.hypot(x - x.mean(), y - y.mean()).max()
            filled = len(x) / (math.pi * (radius + 0.5) ** 2)
            assert (filled > 0.75) == (label == "benign"), seed
    smallest, largest = (math.pi * (r * SIZE / 2) ** 2 for r in (0.1, 0.13 + 0.03))
    assert smallest <= min(areas["benign"]) <= max(areas["benign"]) <= largest
    assert min(areas["malignant"]) > max(areas["benign"])


def test_a_lesion_is_brighter_than_the_lung_it_lies_in() -> None:
    for label in ("benign", "malignant"):
        assert np.median([lesion(label, seed).max() for seed in range(20)]) > 0.25


def test_scan_is_the_stated_formula() -> None:
    site = SimulatedSite(prevalence=(1, 0, 0), gamma=1.7, contrast=0.6, offset=0.2)
    image = phantom("normal", 1)
    seen = site.scan(image, np.random.default_rng(0))
    for row in range(0, SIZE, 7):
        for column in range(0, SIZE, 5):
            wanted = 0.2 + 0.6 * float(image[row, column]) ** 1.7
            assert seen[row, column] == pytest.approx(min(wanted, 1.0))


def test_a_site_is_drawn_as_ever() -> None:
    total = hashlib.sha256()
    for stream, site in enumerate((SOURCE_SITE, TARGET_SITE)):
        for number, label in enumerate(PHANTOM_CLASSES):
            rng = np.random.default_rng((7, stream, number))
            scan = site.scan(draw_phantom(label, 48, rng), rng)
            total.update(np.round(255 * scan).astype(np.uint8).tobytes())
    assert total.hexdigest() == "29a640a383a869f40f5b28c3cf77496f1f0c6cf2c6efc8889f98bd637b3a47d8"


def test_a_scan_blurs_first_and_adds_its_noise_last() -> None:
    image, rng = phantom("benign", 2), np.random.default_rng(0)
    found = TARGET_SITE.scan(image, np.random.default_rng(0))
    spread = ndimage.gaussian_filter(image, 0.01 * SIZE)
    wanted = 0.1 + 0.65 * spread**1.4 + 0.04 * rng.standard_normal((SIZE, SIZE))
    assert np.array_equal(found, wanted.clip(0.0, 1.0))


def test_noise_and_blur_have_the_stated_width() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((200, 200), 0.5)
    noisy = SimulatedSite(prevalence=(1, 0, 0), noise=0.04).scan(flat, rng)
    assert noisy.std() == pytest.approx(0.04, rel=0.03)
    point = np.zeros((101, 101))
    point[50, 50] = 1.0
    spread = SimulatedSite(prevalence=(1, 0, 0), blur=0.03).scan(point, rng)
    offsets = np.arange(101) - 50
    assert (spread.sum(axis=0) * offsets**2).sum() == pytest.approx((0.03 * 101) ** 2, rel=0.02)


def test_a_scan_stays_between_black_and_white() -> None:
    bright = SimulatedSite(prevalence=(1, 0, 0), offset=0.5, contrast=2.0, noise=0.3)
    seen = bright.scan(phantom("normal", 1), np.random.default_rng(0))
    assert (seen.min(), seen.max()) == (0.0, 1.0)


def test_the_target_sees_less_of_fewer_lesions() -> None:
    assert SOURCE_SITE.prevalence[0] < TARGET_SITE.prevalence[0]
    visible = {
        site: np.mean(
            [
                np.abs(site.scan(phantom("malignant", i), np.random.default_rng(0)) - normal).max()
                for i in range(5)
                for normal in [site.scan(phantom("normal", i), np.random.default_rng(0))]
            ]
        )
        for site in (SOURCE_SITE, TARGET_SITE)
    }
    assert 0.03 < visible[TARGET_SITE] < 0.6 * visible[SOURCE_SITE]


def test_classes_are_as_frequent_as_stated(tmp_path: Path) -> None:
    sites = {
        "source": SimulatedSite(prevalence=(0.25, 0.25, 0.5)),
        "target": SimulatedSite(prevalence=(0.9, 0.1, 0.0)),
    }
    assert simulate_sites(tmp_path, n_source=48, n_target=40, size=32, **sites) == tmp_path
    counts = {
        site: [
            [len(list((tmp_path / site / split / c).iterdir())) for c in PHANTOM_CLASSES]
            for split in ("train", "test")
        ]
        for site in sites
    }
    # Three quarters train; a class of no prevalence keeps one image, so that every class is there.
    assert counts == {"source": [[9, 9, 18], [3, 3, 6]], "target": [[26, 3, 1], [8, 1, 1]]}


def test_an_image_depends_on_seed_site_and_number_only(tmp_path: Path) -> None:
    first = simulate_sites(tmp_path / "a", n_source=12, n_target=12, seed=5, size=32)
    again = simulate_sites(tmp_path / "b", n_source=12, n_target=24, seed=5, size=32)
    other = simulate_sites(tmp_path / "c", n_source=12, n_target=12, seed=6, size=32)
    files = sorted(p.relative_to(first) for p in (first / "source").rglob("*.png"))
    assert len(files) == 12
    for file in files:
        assert (first / file).read_bytes() == (again / file).read_bytes()
        assert (first / file).read_bytes() != (other / file).read_bytes()
        with Image.open(first / file) as image:
            assert (image.mode, image.size) == ("L", (32, 32))


@pytest.mark.parametrize("sizes", [{"n_source": 11}, {"n_target": 3}, {"size": 31}])
def test_too_few_images_or_pixels(sizes: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 12 images a site and 32 pixels"):
        simulate_sites(tmp_path / "sites", **sizes)
    assert not (tmp_path / "sites").exists()


@pytest.mark.parametrize("prevalence", [(0.5, 0.5, 0.5), (1.5, -0.25, -0.25)])
def test_prevalences_are_shares(prevalence: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="no shares of 1"):
        SimulatedSite(prevalence=prevalence)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DaptkitError, match="cannot write"):
        simulate_sites(tmp_path / "file", n_source=12, n_target=12, size=32)
