"""Numerics in float32 at least, whatever the precision of the step around them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_HALF = (torch.float16, torch.bfloat16)


def _upcast(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in _HALF else value
    if isinstance(value, (list, tuple)):
        return tuple(_upcast(item) for item in value)
    return value


def _first_device(values: Sequence[Any]) -> str:
    for value in values:
        if isinstance(value, Tensor):
            return value.device.type
        if isinstance(value, (list, tuple)) and value:
            return _first_device(value)
    return "cpu"


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a numeric function to run without autocast, its half-precision inputs upcast.

    Args:
        function: takes at least one tensor, or a sequence of tensors, as a positional argument.

    Returns:
        The same function; bfloat16 and float16 become float32, other types are kept.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        call: Callable[..., R] = function
        given, named = _upcast(args), {key: _upcast(value) for key, value in kwargs.items()}
        device = _first_device(args)
        # Leaving autocast costs a small loss more than the loss itself; meta tensors have none.
        if device == "meta" or not torch.is_autocast_enabled(device):
            return call(*given, **named)
        with torch.autocast(device, enabled=False):
            return call(*given, **named)

    return wrapper
