"""Backbones and image readers of plugins, imported only when one is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from daptkit.data import DecodedImage, Reader
from daptkit.host import load_models, load_readers
from daptkit.host.discovery import discover


def plugin_backbones() -> dict[str, Callable[..., Any]]:
    """Return the backbones that plugins declare, by name; a plugin is imported when called."""
    return {name: partial(_backbone, name) for name in discover().names("model")}


def _backbone(name: str, **arguments: Any) -> Any:
    return load_models([name])[0].load_factory()(**arguments)


def plugin_readers() -> dict[str, Reader]:
    """Return the readers of installed plugins by lower-case extension.

    Their torch-free halves are imported, since only they know the extensions; the decoder itself
    is imported when the first file asks for it.
    """
    if not discover().names("reader"):
        return {}
    readers: dict[str, Reader] = {}
    for loaded in load_readers():
        resolve = cache(loaded.load_factory)
        for extension in loaded.spec.extensions:
            readers[extension] = partial(_read, resolve)
    return readers


def _read(resolve: Callable[[], Callable[..., Any]], path: Path, frame: int | None) -> DecodedImage:
    image: DecodedImage = resolve()(path, frame)
    return image
