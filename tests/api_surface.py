"""The public surface of the plugin contract, found by looking: one line a name.

``python tests/api_surface.py`` writes the snapshot that tests/test_api_frozen.py compares with.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daptkit.plugin import API_VERSION

MODULES = (
    "daptkit.plugin",
    "daptkit.host.hookspecs",
    "daptkit.method",
    "daptkit.reader",
    "daptkit.nn",
    "daptkit.shift",
    "daptkit.errors",
    "daptkit.testing",
)
"""Modules that a plugin may import, and the hooks it implements."""

SNAPSHOT = Path(__file__).parent / f"api_version_{API_VERSION}.txt"

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def surface() -> list[str]:
    """Return every public name of the contract with its signature, field or value, sorted."""
    lines: set[str] = set()
    for name in MODULES:
        module = importlib.import_module(name)
        short = name.removeprefix("daptkit.")
        for public in _public(module):
            lines.update(_lines(f"{short}.{public}", getattr(module, public)))
    return sorted(lines)


def _public(module: Any) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and getattr(value, "__module__", module.__name__) == module.__name__
        and name not in ("annotations", "T", "hookspec")
    ]


def _lines(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield from _class_lines(name, value)
    elif callable(value):
        yield f"{name}{_signature(value)}"
    elif isinstance(value, (frozenset, tuple)):
        yield from (f"{name} holds {item!r}" for item in value)  # so that one more is one line
    else:
        yield f"{name} = {value!r}"


def _class_lines(name: str, cls: type) -> Iterator[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    yield f"class {name}({bases})" if bases else f"class {name}"
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    for field in fields:
        default = _default(field)
        yield f"{name}.{field.name}: {field.type}{default}"
    own = {field.name for field in fields}
    for key, member in vars(cls).items():
        hidden = key.startswith("_") and key not in ("__init__", "__len__")
        made = key == "__init__" and (fields or getattr(cls, "_is_protocol", False))
        if hidden or made or key in own:
            continue
        if isinstance(member, property):
            yield f"{name}.{key}: {inspect.signature(member.fget).return_annotation}"  # type: ignore[arg-type]
        elif isinstance(member, (staticmethod, classmethod)) or inspect.isfunction(member):
            yield f"{name}.{key}{_signature(getattr(cls, key))}"
    for key, kind in getattr(cls, "__annotations__", {}).items():
        if key not in own and not key.startswith("_"):
            value = f" = {vars(cls)[key]!r}" if key in vars(cls) else ""
            yield f"{name}.{key}: {kind}{value}"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
        shown = sorted(value) if isinstance(value, frozenset) else value
        return f" = {_plain(shown)}"
    return " = ..." if field.default_factory is not dataclasses.MISSING else ""


def _plain(value: Any) -> str:
    return getattr(value, "__name__", None) or _ADDRESS.sub("", repr(value))


def _signature(function: Any) -> str:
    try:
        return _ADDRESS.sub("", str(inspect.signature(function))).replace("'", "")
    except (TypeError, ValueError):
        return "(...)"


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(surface()) + "\n", encoding="utf-8")
