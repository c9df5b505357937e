"""Colour spaces in which sites are compared, and the way back; pixels (..., 3) or images."""

from __future__ import annotations

import torch
from torch import Tensor

SPACES = ("lab", "ycbcr", "rgb", "density")

_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735891647856, -0.331264108352144, 0.5),
    (0.5, -0.418687589158345, -0.081312410841655),
)
_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_EDGE = 6.0 / 29.0


def to_space(rgb: Tensor, space: str, axis: int = 1) -> Tensor:
    """Return sRGB values in a colour space, three channels of comparable size.

    - ``lab``: CIE L*a*b* / 100 under the white of sRGB (D65), by way of linear light;
    - ``ycbcr``: ITU-R BT.601 over the full range, chroma around 0;
    - ``rgb``: as they are;
    - ``density``: optical density -ln((255 x + 1) / 256), 0 for white.

    Args:
        rgb: values in [0, 1], channels along ``axis``.
        space: one of :data:`SPACES`.
        axis: of the channels.
    """
    if space == "rgb":
        return rgb
    if space == "ycbcr":
        return mix(rgb, _YCBCR, axis)
    if space == "density":
        return -((255.0 * rgb + 1.0) / 256.0).log()
    # Rows over their sums: white is (1, 1, 1), as L*a*b* asks for.
    f = _root(mix(_linear(rgb), _white(_XYZ), axis))
    x, y, z = f.unbind(axis)
    return torch.stack([1.16 * y - 0.16, 5.0 * (x - y), 2.0 * (y - z)], axis)


def from_space(values: Tensor, space: str, axis: int = 1) -> Tensor:
    """Return the sRGB values of a colour space; those outside [0, 1] are not clipped.

    Args:
        values: channels along ``axis``.
        space: one of :data:`SPACES`.
        axis: of the channels.
    """
    if space == "rgb":
        return values
    if space == "ycbcr":
        return mix(values, _inverse(_YCBCR), axis)
    if space == "density":
        return (256.0 * (-values).exp() - 1.0) / 255.0
    lightness, a, b = values.unbind(axis)
    y = (lightness + 0.16) / 1.16
    xyz = _cube(torch.stack([y + a / 5.0, y, y - b / 2.0], axis))
    return _gamma(mix(xyz, _inverse(_white(_XYZ)), axis))


def mix(values: Tensor, matrix: Tensor | tuple[tuple[float, ...], ...], axis: int = 1) -> Tensor:
    """Return matrix @ values over the three channels.

    Written out: what a library's product rounds to depends on how many pixels come at once.

    Args:
        values: channels along ``axis``.
        matrix: (3, 3).
        axis: of the channels.
    """
    first, second, third = values.unbind(axis)
    return torch.stack([row[0] * first + row[1] * second + row[2] * third for row in matrix], axis)


def _white(matrix: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(v / sum(row) for v in row) for row in matrix)


def _inverse(matrix: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    inverse = torch.linalg.inv(torch.tensor(matrix, dtype=torch.float64))
    return tuple(tuple(row) for row in inverse.tolist())


def _linear(x: Tensor) -> Tensor:
    """Undo the gamma of sRGB (IEC 61966-2-1)."""
    return torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _gamma(x: Tensor) -> Tensor:
    edge = 0.0031308
    # A power sees values of its own side only: its gradient at 0 and below is not finite.
    return torch.where(x <= edge, 12.92 * x, 1.055 * x.clamp(min=edge) ** (1 / 2.4) - 0.055)


def _root(t: Tensor) -> Tensor:
    edge = _EDGE**3
    return torch.where(t > edge, t.clamp(min=edge) ** (1 / 3), t / (3 * _EDGE**2) + 4.0 / 29.0)


def _cube(f: Tensor) -> Tensor:
    return torch.where(f > _EDGE, f**3, 3 * _EDGE**2 * (f - 4.0 / 29.0))
