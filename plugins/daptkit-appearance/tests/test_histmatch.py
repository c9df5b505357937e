"""Quantile matching against plain loops, and what its map must never do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from daptkit.testing import make_task
from daptkit_appearance.histmatch import LEVELS, HistMatch, level_map, map_levels
from daptkit_appearance.plugin import HistMatchOptions


def levels(n: int, seed: int, power: float = 1.0, bits: int = 255) -> Tensor:
    x = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x**power * bits).round() / bits


def loop_map(source: list[float], target: list[float], k: int, at: float) -> float:
    """The map's formula at one level, with lists."""

    def quantile(values: list[float], p: float) -> float:
        ordered = sorted(values)
        place = p * (len(ordered) - 1)
        left = int(place)
        right = min(left + 1, len(ordered) - 1)
        return ordered[left] + (place - left) * (ordered[right] - ordered[left])

    points: dict[float, list[float]] = {}
    for i in range(k):
        p = (i + 0.5) / k
        points.setdefault(quantile(target, p), []).append(quantile(source, p))
    pairs = [(x, sum(ys) / len(ys)) for x, ys in sorted(points.items())]
    pairs = [(0.0, 0.0)] * (pairs[0][0] > 0) + pairs + [(1.0, 1.0)] * (pairs[-1][0] < 1)
    for (x0, y0), (x1, y1) in itertools.pairwise(pairs):
        if x0 <= at <= x1:
            return 0.999 * (y0 + (y1 - y0) * (at - x0) / (x1 - x0)) + 0.001 * at
    raise AssertionError(at)


@pytest.mark.parametrize("bits", [255, 12])  # with 12 levels most quantiles are equal
def test_map_is_the_loop(bits: int) -> None:
    source, target = levels(300, 1, 2.0), levels(250, 2, 0.5, bits)
    found = level_map(source, target, 40)
    assert found is not None and found.shape == (LEVELS + 1,)
    for node in range(0, LEVELS + 1, 17):
        expected = loop_map(source.tolist(), target.tolist(), 40, node / LEVELS)
        assert float(found[node]) == pytest.approx(expected, abs=1e-12)


def test_distribution_becomes_the_sources() -> None:
    source, target = levels(20000, 3, 2.5), 0.3 + 0.2 * levels(20000, 4)
    table = level_map(source, target)
    assert table is not None
    mapped = map_levels(target.view(1, 1, 100, 200), table[None]).flatten()
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert float(mapped.quantile(q)) == pytest.approx(float(source.quantile(q)), abs=0.01)


def test_map_rises_strictly_and_keeps_black_and_white() -> None:
    gap = torch.cat([0.2 * levels(500, 5), 0.8 + 0.2 * levels(500, 6)])  # nothing in between
    found = level_map(torch.full((500,), 0.4, dtype=torch.float64).lerp(gap[:500], 0.5), gap)
    assert found is not None
    assert (found.diff() > 0).all()
    smooth = level_map(0.1 + 0.5 * levels(500, 7), 0.2 + 0.5 * levels(500, 8))
    assert smooth is not None
    assert (float(smooth[0]), float(smooth[-1])) == (0.0, 1.0)


def test_padding_does_not_move_the_map() -> None:
    generator = torch.Generator().manual_seed(9)
    source = 0.2 + 0.6 * torch.rand(4, 1, 30, 30, generator=generator)
    target = 0.3 + 0.3 * torch.rand(4, 1, 30, 30, generator=generator)
    padded = torch.nn.functional.pad(target, (0, 0, 20, 20))
    tables = {}
    for masked in (True, False):
        for name, images in (("plain", target), ("padded", padded)):
            method = HistMatch(HistMatchOptions(foreground=masked), make_task())
            method.fit_images(source, images)
            tables[name, masked] = method.table[0]
            if masked and name == "padded":
                assert (method.align_images(padded, "target")[:, :, :20] == 0).all()
    assert torch.equal(tables["plain", True], tables["padded", True])
    assert (tables["plain", False] - tables["padded", False]).abs().max() > 0.1


def test_grey_images_of_three_channels_stay_grey() -> None:
    generator = torch.Generator().manual_seed(10)
    source, target = (
        torch.rand(3, 1, 16, 16, generator=generator).repeat(1, 3, 1, 1) for _ in "st"
    )
    method = HistMatch(HistMatchOptions(), make_task())
    method.fit_images(source**2, target)
    aligned = method.align_images(target, "target")
    assert torch.equal(aligned[:, 0], aligned[:, 1]) and torch.equal(aligned[:, 0], aligned[:, 2])


def test_a_constant_channel_is_left_alone_and_told() -> None:
    generator = torch.Generator().manual_seed(11)
    source, target = (torch.rand(3, 3, 16, 16, generator=generator) for _ in "st")
    target[:, 1] = 0.5
    method = HistMatch(HistMatchOptions(), make_task())
    method.fit_images(source**2, target)
    aligned = method.align_images(target, "target")
    np.testing.assert_allclose(aligned[:, 1], target[:, 1], atol=1e-6)
    assert (aligned[:, 0] - target[:, 0]).abs().mean() > 0.05
    assert method.report()["channels_left_alone"] == [1]
    assert method.report()["mean_change_of_levels"][1] == 0.0
