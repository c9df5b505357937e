"""The order of training images, and augmentation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from daptkit.data import (
    Augment,
    Conversion,
    ImageSet,
    ImageTable,
    auto_preset,
    batch_indices,
    steps_per_epoch,
)
from daptkit.data.augment import PRESETS, AffineRange, affine_maps
from daptkit.data.refs import ArrayRef
from daptkit.errors import UsageError


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 5), (12, 5)])
def test_every_pass_is_a_permutation(n: int, batch_size: int) -> None:
    steps = 3 * n
    order = np.concatenate(
        [batch_indices(n, batch_size, seed=1, stream=0, step=step) for step in range(steps)]
    )
    assert len(order) == steps * batch_size and order.dtype == np.int64
    passes = order[: len(order) // n * n].reshape(-1, n)
    assert all(sorted(rows) == list(range(n)) for rows in passes.tolist())
    if n > 6:
        assert (passes[0] != passes[1]).any()


def test_order_depends_on_seed_stream_and_step_alone() -> None:
    def take(seed: int, stream: int, step: int) -> list[int]:
        return batch_indices(100, 30, seed=seed, stream=stream, step=step).tolist()

    late = take(0, 0, 1000)
    for step in range(40):
        take(5, 1, step)
    assert take(0, 0, 1000) == late
    assert len({tuple(take(*key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}) == 4
    batch_indices(100, 30, seed=0, stream=0, step=0)[:] = -1
    assert min(take(0, 0, 0)) >= 0
    with pytest.raises(ValueError, match="0 rows"):
        batch_indices(0, 4, seed=0, stream=0, step=0)


def test_steps_per_epoch() -> None:
    assert steps_per_epoch(6400, 100, 64) == 100
    assert steps_per_epoch(100, 6401, 64) == 101
    assert steps_per_epoch(100, 100, 64) == 50
    assert steps_per_epoch(0, 6400, 64) == 100


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blob(n: int = 8, channels: int = 1, background: float = 0.0) -> Tensor:
    images = torch.full((n, channels, 28, 28), background)
    images[:, :, 9:20, 12:17] = 0.9
    return images


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_reproducible_and_keep_range(preset: str) -> None:
    images = torch.rand(6, 3, 20, 20, generator=generator(9))
    first = Augment(preset)(images, generator(1))
    assert first.shape == images.shape and first.dtype == images.dtype
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, Augment(preset)(images, generator(1)))
    if preset == "none":
        assert first is images
    else:
        assert not torch.allclose(first, Augment(preset)(images, generator(2)))


@pytest.mark.parametrize("preset", ["digits", "xray", "microscopy", "photo"])
def test_each_image_gets_its_own_map_and_channels_share_it(preset: str) -> None:
    out = Augment(preset)(blob(8, 3), generator())
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])
    assert len({tuple(image.flatten().tolist()) for image in out}) == 8


@pytest.mark.parametrize("background", [0.0, 0.4, 1.0])
def test_grey_presets_fill_with_the_background(background: float) -> None:
    images = torch.full((5, 1, 28, 28), background)
    for preset in ("digits", "xray"):
        assert torch.allclose(Augment(preset)(images, generator()), images, atol=1e-6)


def test_grey_presets_never_mirror() -> None:
    for preset in ("digits", "xray"):
        ranges = PRESETS[preset]
        assert ranges is not None
        theta = affine_maps(ranges, 500, torch.zeros(1), generator())
        assert (torch.linalg.det(theta[:, :, :2]) > 0).all()


def test_microscopy_has_all_angles_and_both_hands() -> None:
    ranges = PRESETS["microscopy"]
    assert ranges is not None
    theta = affine_maps(ranges, 2000, torch.zeros(1), generator())
    hands = (torch.linalg.det(theta[:, :, :2]) > 0).float().mean()
    assert 0.4 < hands < 0.6
    angles = torch.atan2(theta[:, 1, 0], theta[:, 0, 0])
    counts = torch.histc(angles, bins=8, min=-math.pi, max=math.pi)
    assert counts.min() > 150


def test_affine_map_equals_its_formula() -> None:
    ranges = AffineRange(degrees=30.0, translate=0.2, scale=(0.5, 2.0), shear=20.0, flip_x=True)
    theta = affine_maps(ranges, 50, torch.zeros(1, dtype=torch.float64), generator(4))
    draws = torch.rand(7, 50, generator=generator(4)).double()
    for row in range(50):
        u = [float(value) for value in draws[:, row]]
        angle, shear = (
            math.radians(30 * (2 * u[0] - 1)),
            math.tan(math.radians(20 * (2 * u[1] - 1))),
        )
        scale = 0.5 * 4.0 ** u[2]
        flip = -1.0 if u[5] < 0.5 else 1.0
        rotation = np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        linear = rotation @ np.array([[1, shear], [0, 1]]) @ np.diag([flip / scale, 1 / scale])
        assert np.allclose(theta[row, :, :2].numpy(), linear, atol=1e-6)
        shift = [2 * 0.2 * (2 * u[3] - 1), 2 * 0.2 * (2 * u[4] - 1)]
        assert np.allclose(theta[row, :, 2].numpy(), shift, atol=1e-6)


def test_unknown_preset() -> None:
    with pytest.raises(UsageError, match=r"not 'digit'.*'digits'"):
        Augment("digit")


def image_set(images: np.ndarray, in_chans: int, size: int) -> ImageSet:
    refs = tuple(ArrayRef(images, row) for row in range(len(images)))
    table = ImageTable(
        domain="source",
        names=tuple(map(str, range(len(refs)))),
        refs=refs,
        splits=("",) * len(refs),
    )
    return ImageSet(table, Conversion(img_size=size, in_chans=in_chans))


def test_auto_preset() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (12, 16, 16)).astype(np.uint8)
    colour = rng.integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    assert auto_preset(image_set(grey, 1, 28)) == "digits"
    assert auto_preset(image_set(grey, 3, 28)) == "digits"
    assert auto_preset(image_set(grey, 3, 96)) == "xray"
    assert auto_preset(image_set(grey, 3, 28), 96) == "xray"
    assert auto_preset(image_set(colour, 3, 28)) == "microscopy"
    assert auto_preset(image_set(colour, 1, 96)) == "xray"
    few = np.repeat(grey[..., None], 3, axis=-1)
    few[0] = colour[0]
    assert auto_preset(image_set(few, 3, 28)) == "digits"
