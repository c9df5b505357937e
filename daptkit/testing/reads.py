"""Counts what makes a program wait for a GPU: numbers that it reads or sends by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_OPERATIONS = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
}
_CALLS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu}


class Reads:
    """A block that counts reads, of the Python calls and of what torch does inside."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._modes = (_Operations(self.found), _Calls(self.found))

    def __enter__(self) -> Reads:
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._found = found

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.name().split(".")[0] in _OPERATIONS:
            self._found.append(func.name())
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # torch.where copies a number to the device by itself, and waits until it is there.
        sends = func is torch.where and not all(isinstance(x, torch.Tensor) for x in args)
        if func in _CALLS or sends:
            self._found.append(func.__name__)
        return func(*args, **(kwargs or {}))
