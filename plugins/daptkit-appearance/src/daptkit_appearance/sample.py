"""The pixels of a site that its statistics are of."""

from __future__ import annotations

import torch
from torch import Tensor

from daptkit.errors import DataError, UsageError

MAX_CHANNELS = 8
"""Most channels that the state of a method has room for; it has one shape whatever the images."""
MIN_PIXELS = 64
"""Pixels below which a site has no statistics."""

_LEVEL = 1.0 / 255.0
_FLAT_SPREAD = 0.06
_DARK, _BRIGHT = 0.08, 0.92
_PIXELS = 1 << 19
_CHUNK = 16


def check_samples(method: str, source: Tensor, target: Tensor) -> None:
    """Check that two samples of images can be compared.

    Args:
        method: name of the method, for messages.
        source: (N, C, H, W).
        target: (M, C, H', W').

    Raises:
        DataError: another shape, no image, or values that are not finite.
        UsageError: more channels than there is room for.
    """
    for name, images in (("source", source), ("target", target)):
        if images.ndim != 4 or 0 in images.shape:
            raise DataError(
                f"{method} needs {name} images (N, C, H, W), not {tuple(images.shape)}."
            )
        if not bool(torch.isfinite(images).all()):
            raise DataError(f"{method}: {name} images hold values that are NaN or infinite.")
    if source.shape[1] != target.shape[1]:
        raise DataError(
            f"{method}: the source's images have {source.shape[1]} channels, the target's"
            f" {target.shape[1]}."
        )
    if source.shape[1] > MAX_CHANNELS:
        raise UsageError(
            f"{method} takes at most {MAX_CHANNELS} channels, not {source.shape[1]}; set"
            " --in-chans."
        )


def is_grey(images: Tensor) -> bool:
    """Return whether all channels of all images are equal to within half a level of 8 bits."""
    return bool((images.amax(1) - images.amin(1)).max() <= _LEVEL / 2)


def foreground(images: Tensor, *, grey: bool) -> Tensor:
    """Return which pixels are image rather than padding or collimation, (N, H, W).

    Left out are rows and columns from each border inwards while they are flat: below 0.08 with a
    spread of up to 0.06. Of grey images also those that are as flat above 0.92 or constant to a
    level of 8 bits, and every pixel at 0 or 1, where the detector or the window saturates; in
    colour images such a border is the empty slide, and stays.

    Args:
        images: (N, C, H, W) in [0, 1].
        grey: whether the images are grey, as :func:`is_grey` says.
    """
    mask = torch.ones_like(images[:, 0], dtype=torch.bool)
    for _ in range(2):  # columns are judged without the rows left out, then rows without columns
        for axis in (1, 2):
            mask = mask & _inside(images, mask, axis, grey).unsqueeze(3 - axis)
    if grey:
        mask = mask & (images.amax(1) > _LEVEL / 2) & (images.amin(1) < 1 - _LEVEL / 2)
    return mask


def _inside(images: Tensor, mask: Tensor, axis: int, grey: bool) -> Tensor:
    """Return which rows (axis 1) or columns (axis 2) are not of a flat border, (N, H or W)."""
    across = 3 - axis  # the axis of the mask that a line runs along
    seen = mask.unsqueeze(1)
    high = images.masked_fill(~seen, -1.0).amax(across + 1)  # (N, C, L)
    low = images.masked_fill(~seen, 2.0).amin(across + 1)
    empty = ~mask.any(across)
    spread, top, bottom = (high - low).amax(1), high.amax(1), low.amin(1)
    even = spread <= _FLAT_SPREAD
    flat = even & (top < _DARK)
    if grey:
        flat = flat | (even & (bottom > _BRIGHT))
        flat = flat | (spread <= _LEVEL)
    flat = flat | empty
    first = flat.int().cumprod(1).bool()
    last = flat.flip(1).int().cumprod(1).flip(1).bool()
    return ~(first | last)


def site_pixels(images: Tensor, *, grey: bool, masked: bool = True) -> Tensor:
    """Return a site's pixels, evenly drawn where there are more than half a million, (P, C).

    Args:
        images: (N, C, H, W) in [0, 1].
        grey: as of :func:`foreground`.
        masked: leave padding and collimation out.

    Returns:
        float64.
    """
    if masked:
        parts = [foreground(part, grey=grey) for part in torch.split(images, _CHUNK)]
        places = torch.cat(parts).flatten().nonzero().squeeze(1)
    else:
        places = torch.arange(images[:, 0].numel(), device=images.device)
    if len(places) > _PIXELS:
        step = torch.arange(_PIXELS, dtype=torch.int64, device=images.device)
        places = places[step * len(places) // _PIXELS]
    flat = images.movedim(1, 3).reshape(-1, images.shape[1])
    return flat[places].double()
