"""Colour spaces, transfer of moments and stains against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from daptkit.errors import UsageError
from daptkit.testing import make_task
from daptkit_appearance.colour import Colour, covariance_map, mean_std_map
from daptkit_appearance.plugin import ColourOptions
from daptkit_appearance.spaces import SPACES, from_space, to_space
from daptkit_appearance.stains import find_stains, stain_map

WHITE = torch.zeros(3, dtype=torch.float64)


def pixels(n: int, seed: int) -> Tensor:
    """Return correlated pixels, (n, 3) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    mixing = torch.tensor([[0.15, 0.02, 0.0], [0.08, 0.1, 0.0], [0.03, -0.04, 0.06]])
    return (0.5 + x @ mixing.double().T).clamp(0, 1)


def stained(n: int, seed: int, stains: Tensor, scale: float = 1.0) -> Tensor:
    """Return densities of pixels that hold two stains, some of them one alone, (n, 3)."""
    generator = torch.Generator().manual_seed(seed)
    amounts = scale * (0.6 + 1.5 * torch.rand(n, 2, generator=generator, dtype=torch.float64))
    alone = torch.rand(n, generator=generator)
    amounts[alone < 0.2, 0] = 0.0
    amounts[alone > 0.8, 1] = 0.0
    return amounts @ stains.double().T


# Lightness, a* and b* of the sRGB primaries as printed by others (Lindbloom), D65.
@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1.0, 1.0, 1.0), (100.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        ((1.0, 0.0, 0.0), (53.24, 80.09, 67.20)),
        ((0.0, 1.0, 0.0), (87.73, -86.18, 83.18)),
        ((0.0, 0.0, 1.0), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0.0, 0.0)),
    ],
)
def test_lab_is_that_of_srgb(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    found = 100 * to_space(torch.tensor([rgb], dtype=torch.float64), "lab")[0]
    assert found.tolist() == pytest.approx(lab, abs=0.015)


def test_ycbcr_and_density() -> None:
    red = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert to_space(red, "ycbcr")[0].tolist() == pytest.approx([0.299, -0.168736, 0.5], abs=1e-6)
    assert to_space(red, "density")[0].tolist() == pytest.approx(
        [0.0, math.log(256), math.log(256)], abs=1e-12
    )


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spaces_have_a_way_back(space: str, dtype: torch.dtype) -> None:
    grid = torch.linspace(0, 1, 18, dtype=dtype)
    rgb = torch.cartesian_prod(grid, grid, grid)
    found = from_space(to_space(rgb, space), space)
    torch.testing.assert_close(found, rgb, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)
    image = rgb.T.reshape(1, 3, 18, -1)
    torch.testing.assert_close(
        to_space(image, space)[0].flatten(1).T, to_space(rgb, space), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", ["mean_std", "covariance"])
def test_moments_become_the_sources(space: str, kind: str) -> None:
    source, target = pixels(900, 1), 0.3 + 0.5 * pixels(800, 2) ** 2
    s, t = (to_space(x, space) for x in (source, target))
    matrix = mean_std_map(s, t)[0] if kind == "mean_std" else covariance_map(s, t)
    assert matrix is not None
    moved = (t - t.mean(0)) @ matrix.T + s.mean(0)
    torch.testing.assert_close(moved.mean(0), s.mean(0))
    torch.testing.assert_close(moved.std(0), s.std(0))
    if kind == "covariance":
        torch.testing.assert_close(moved.T.cov(), s.T.cov())
        torch.testing.assert_close(matrix, matrix.T)
    # The method does the same to images, but for clipping and float32.
    method = Colour(ColourOptions(kind=kind, space=space, foreground=False), make_task())
    images = [x.float().T.reshape(1, 3, 10, -1) for x in (source, target)]
    method.fit_images(*images)
    expected = from_space(moved, space).clamp(0, 1).T.reshape(1, 3, 10, -1).float()
    torch.testing.assert_close(
        method.align_images(images[1], "target"), expected, atol=2e-4, rtol=0
    )


def test_spreads_are_the_loop() -> None:
    source, target = pixels(50, 3), pixels(40, 4) ** 2
    matrix, usable = mean_std_map(source, target)
    assert usable

    def deviation(values: list[float]) -> float:
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))

    for channel in range(3):
        gain = deviation(source[:, channel].tolist()) / deviation(target[:, channel].tolist())
        assert float(matrix[channel, channel]) == pytest.approx(gain, rel=1e-12)
    assert torch.equal(matrix, matrix.diag().diag())


def test_of_all_maps_the_covariance_moves_colours_least() -> None:
    source, target = (
        pixels(900, 5),
        pixels(900, 6) @ torch.diag(torch.tensor([0.5, 1.0, 1.4])).double(),
    )
    best = covariance_map(source, target)
    assert best is not None
    centred = target - target.mean(0)
    # Any other map to the same covariance is the best one and a turn among colours of one spread.
    root = torch.linalg.cholesky(source.T.cov())
    turn = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    )[0]
    other = root @ turn @ torch.linalg.inv(torch.linalg.cholesky(target.T.cov()))
    torch.testing.assert_close((centred @ other.T).T.cov(), source.T.cov())
    moves = [float((centred @ m.T - centred).square().sum()) for m in (best, other)]
    assert moves[0] < moves[1]


def test_degenerate_spreads() -> None:
    source, target = pixels(300, 8), pixels(300, 9)
    target[:, 1] = 0.4  # one channel without any spread
    matrix, usable = mean_std_map(source, target)
    assert not usable and float(matrix[1, 1]) == 1.0
    assert covariance_map(source, target) is None and covariance_map(target, source) is None
    faint = 0.5 + 0.05 * (pixels(300, 10) - 0.5)
    assert float(mean_std_map(source, faint)[0].max()) == 5.0
    gains = covariance_map(source, 0.5 + 0.15 * (pixels(300, 10) - 0.5))
    assert gains is not None and float(torch.linalg.eigvalsh(gains).max()) <= 5.0 + 1e-9


def test_stains_are_found() -> None:
    true = torch.tensor([[0.65, 0.12], [0.70, 0.95], [0.29, 0.28]]).double()
    true = true / true.norm(dim=0)
    found = find_stains(stained(20000, 11, true), WHITE)
    assert found is not None
    torch.testing.assert_close(found.colours[:, :2], true, atol=0.03, rtol=0)
    assert found.amounts.tolist() == pytest.approx([2.08, 2.08], abs=0.1)
    # A coloured lamp adds the same density everywhere, and most of a slide is empty.
    lamp = torch.tensor([0.02, 0.1, 0.3]).double()
    slide = torch.cat([stained(20000, 11, true), torch.zeros(10000, 3)]) + lamp
    under_lamp = find_stains(slide)
    assert under_lamp is not None
    torch.testing.assert_close(under_lamp.white, lamp)
    torch.testing.assert_close(under_lamp.colours, found.colours)


@pytest.mark.parametrize("swapped", [False, True])
def test_stains_of_one_site_become_the_others(swapped: bool) -> None:
    ours = torch.tensor([[0.65, 0.12], [0.70, 0.95], [0.29, 0.28]]).double()
    ours = ours / ours.norm(dim=0)
    theirs = torch.tensor([[0.55, 0.25], [0.60, 0.90], [0.58, 0.35]]).double()
    theirs = theirs / theirs.norm(dim=0)
    source, target = find_stains(stained(20000, 12, ours), WHITE), None
    density = stained(20000, 12, theirs, 0.5)
    target = find_stains(density, WHITE)
    assert source is not None and target is not None
    if swapped:
        target = type(target)(
            white=target.white,
            colours=torch.stack(
                [target.colours[:, 1], target.colours[:, 0], -target.colours[:, 2]], 1
            ),
            amounts=target.amounts.flip(0),
        )
    moved = density @ stain_map(source, target, 5.0).T
    torch.testing.assert_close(moved, stained(20000, 12, ours), atol=0.12, rtol=0)
    # What is neither stain is kept: the normal of one plane becomes that of the other.
    theirs_out, ours_out = (torch.linalg.cross(c[:, 0], c[:, 1]) for c in (theirs, ours))
    kept = stain_map(source, target, 5.0) @ (theirs_out / theirs_out.norm())
    torch.testing.assert_close(kept, ours_out / ours_out.norm(), atol=0.1, rtol=0)


def test_sites_without_two_stains() -> None:
    one = torch.tensor([[0.65, 0.65], [0.70, 0.70], [0.29, 0.29]]).double()
    assert find_stains(stained(5000, 13, one), WHITE) is None
    assert find_stains(torch.zeros(5000, 3, dtype=torch.float64), WHITE) is None
    assert find_stains(torch.ones(5000, 3, dtype=torch.float64), WHITE) is None
    assert find_stains(torch.ones(10, 3, dtype=torch.float64), WHITE) is None


def test_against_torchstain() -> None:
    normalizers = pytest.importorskip("torchstain.torch.normalizers.macenko")
    stains = torch.tensor([[0.65, 0.12], [0.70, 0.95], [0.29, 0.28]])
    density = stained(40000, 14, stains / stains.norm(dim=0), 0.7)
    levels = (256 * (-density).exp() - 1).round().clamp(0, 255)
    other = normalizers.TorchMacenkoNormalizer()
    other.fit(levels.T.reshape(3, 200, 200).to(torch.uint8), Io=256, alpha=1, beta=0.15)
    ours = find_stains(to_space(levels / 255, "density"), WHITE)
    assert ours is not None
    torch.testing.assert_close(ours.colours[:, :2].float(), other.HERef, atol=2e-3, rtol=0)
    # It counts pixels without stain too; all of these have some.
    torch.testing.assert_close(ours.amounts.float(), other.maxCRef, atol=5e-3, rtol=0)


def test_grey_images_are_refused_and_grey_in_three_channels_stays_grey() -> None:
    generator = torch.Generator().manual_seed(15)
    source, target = (torch.rand(3, 1, 16, 16, generator=generator) for _ in "st")
    with pytest.raises(UsageError, match="colour needs images of 3 channels, not 1"):
        Colour(ColourOptions(), make_task()).fit_images(source, target)
    source, target = source.repeat(1, 3, 1, 1), 0.5 * target.repeat(1, 3, 1, 1)
    for kind in ("mean_std", "covariance", "macenko"):
        method = Colour(ColourOptions(kind=kind), make_task())
        method.fit_images(source, target)
        aligned = method.align_images(target, "target")
        assert float((aligned.amax(1) - aligned.amin(1)).max()) < 1e-4
        assert method.report()["note"]
        if kind != "macenko":
            assert float(aligned.std()) == pytest.approx(float(source.std()), rel=0.1)


@pytest.mark.parametrize("space", SPACES)
def test_spaces_have_finite_gradients(space: str) -> None:
    # Both branches of a gamma have one, also beyond the range that either is for.
    values = torch.linspace(-0.002, 1.3, 60, dtype=torch.float64).reshape(20, 3).requires_grad_()
    far = torch.linspace(-0.9, 1.3, 60, dtype=torch.float64).reshape(20, 3).requires_grad_()
    for x, moved in ((values, to_space(values, space)), (far, from_space(far, space))):
        (gradient,) = torch.autograd.grad(moved.sum(), x)
        assert moved.isfinite().all() and gradient.isfinite().all()
