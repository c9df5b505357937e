"""Names that are on their way out: they work on, and say what to use instead."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

CallableT = TypeVar("CallableT", bound=Callable[..., Any])


def deprecated(instead: str, *, since: str) -> Callable[[CallableT], CallableT]:
    """Decorate a public function or class that a later version of the contract drops.

    It does what it did, with a ``DeprecationWarning`` at the line that calls it::

        @deprecated("daptkit.nn.mmd2", since="0.3")
        def mmd(source, target): ...

    Args:
        instead: what to use, by its full name.
        since: version of daptkit that deprecates it.
    """

    def decorate(old: CallableT) -> CallableT:
        text = _text(f"{old.__module__}.{old.__qualname__}", instead, since)
        # A class stays one, for those that derive from it or ask for its instances.
        function = cast(Any, old).__init__ if isinstance(old, type) else old

        @functools.wraps(function)
        def warns(*args: Any, **kwargs: Any) -> Any:
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            return function(*args, **kwargs)

        if not isinstance(old, type):
            return cast(CallableT, warns)
        cast(Any, old).__init__ = warns
        return old

    return decorate


def moved_names(module: str, moved: Mapping[str, str], *, since: str) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` under which names that have moved are still found.

    At the end of the module that had them::

        __getattr__ = moved_names(__name__, {"mmd": "daptkit.nn:mmd2"}, since="0.3")

    Args:
        module: name of that module.
        moved: old name to ``"module:name"``.
        since: version of daptkit that moved them.
    """

    def find(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = moved[name].partition(":")
        text = _text(f"{module}.{name}", f"{home}.{new}", since)
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(home), new)

    return find


def _text(old: str, instead: str, since: str) -> str:
    return (
        f"{old} is deprecated since daptkit {since}: use {instead}. It works until the next"
        " version of the plugin contract."
    )
