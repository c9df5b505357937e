"""Samples, and the formulas of daptkit.nn as plain float64 loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Rows = Sequence[Sequence[float]]


def draw(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) + shift


def draw_weights(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator, dtype=torch.float64) * 2 + 0.1


def loop_mean(x: Rows, w: Sequence[float]) -> list[float]:
    return [sum(wi * r[j] for wi, r in zip(w, x, strict=True)) / sum(w) for j in range(len(x[0]))]


def loop_covariance(x: Rows, w: Sequence[float]) -> list[list[float]]:
    m, d = loop_mean(x, w), len(x[0])
    return [
        [
            sum(wi * (r[a] - m[a]) * (r[b] - m[b]) for wi, r in zip(w, x, strict=True))
            / (sum(w) - 1)
            for b in range(d)
        ]
        for a in range(d)
    ]


def loop_covariance_distance(s: Rows, t: Rows, ws: Sequence[float], wt: Sequence[float]) -> float:
    cs, ct, d = loop_covariance(s, ws), loop_covariance(t, wt), len(s[0])
    return sum((cs[a][b] - ct[a][b]) ** 2 for a in range(d) for b in range(d))


def squared(x: Sequence[float], y: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def loop_joint_mmd2(
    layers: Sequence[tuple[Rows, Rows]],
    ws: Sequence[float],
    wt: Sequence[float],
    powers: Sequence[range],
    bandwidths: Sequence[float | None],
) -> float:
    c = [w / sum(ws) for w in ws] + [-w / sum(wt) for w in wt]
    n = len(c)
    product = [[1.0] * n for _ in range(n)]
    for (s, t), ks, b in zip(layers, powers, bandwidths, strict=True):
        rows = [*s, *t]
        d = [[squared(x, y) for y in rows] for x in rows]
        if b is None:
            b = sum(abs(c[i] * c[j]) / 4 * d[i][j] for i in range(n) for j in range(n))
        for i in range(n):
            for j in range(n):
                product[i][j] *= sum(math.exp(-d[i][j] / (2 * 2.0**k * b)) for k in ks)
    return sum(c[i] * c[j] * product[i][j] for i in range(n) for j in range(n))
