"""The layers of pytorch-adapt that the methods use, or a line on why they cannot be imported."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

try:
    with warnings.catch_warnings():  # of packages that it imports and nothing here uses
        warnings.simplefilter("ignore")
        from pytorch_adapt.layers import (
            BatchSpectralLoss,
            BNMLoss,
            DiversityLoss,
            EntropyLoss,
            MCDLoss,
        )
except ImportError as error:
    raise ImportError(
        f"pytorch-adapt cannot be imported ({error}); try pip install 'pytorch-adapt==0.0.83'"
        " 'setuptools<81'"
    ) from error


def singular_or_nan(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return a loss of singular values, NaN where a value of ``x`` is not finite.

    LAPACK raises there, which would blame the plugin for a training that diverged.

    Args:
        loss: takes a matrix.
        x: (N, D).
    """
    try:
        return loss(x)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        if bool(x.isfinite().all()):
            raise
        return x.sum() * float("nan")


__all__ = [
    "BNMLoss",
    "BatchSpectralLoss",
    "DiversityLoss",
    "EntropyLoss",
    "MCDLoss",
    "singular_or_nan",
]
