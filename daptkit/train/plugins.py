"""Backbones and image readers of plugins, imported only when one is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from daptkit.data import DecodedImage, Reader
from daptkit.errors import DataError, PluginError
from daptkit.host import load_models, load_readers
from daptkit.host.discovery import discover


def plugin_backbones() -> dict[str, Callable[..., Any]]:
    """Return the backbones that plugins declare, by name; a plugin is imported when called."""
    return {name: partial(_backbone, name) for name in discover().names("model")}


def _backbone(name: str, **arguments: Any) -> Any:
    return load_models([name])[0].load_factory()(**arguments)


def plugin_readers(log: Callable[[str], None]) -> dict[str, Reader]:
    """Return the readers of installed plugins by lower-case extension.

    Their torch-free halves are imported, since only they know the extensions; the decoder itself
    is imported when the first file asks for it.

    Args:
        log: told one line of each reader that is broken, or comes second for an extension.
    """
    if not discover().names("reader"):
        return {}
    readers: dict[str, Reader] = {}
    origins: dict[str, str] = {}
    for loaded in load_readers(log=log):
        resolve = cache(loaded.load_factory)
        for extension in loaded.spec.extensions:
            first = origins.setdefault(extension, loaded.origin)
            if first == loaded.origin:
                readers[extension] = partial(_read, resolve)
            else:
                log(f"warning: {first} reads '{extension}' files; {loaded.origin} is not used.")
    return readers


def _read(resolve: Callable[[], Callable[..., Any]], path: Path, frame: int | None) -> DecodedImage:
    try:
        reader = resolve()
    except PluginError as error:
        # The reason why an image cannot be read is a DataError; its text names the package.
        raise DataError(str(error)) from error
    image: DecodedImage = reader(path, frame)
    return image
