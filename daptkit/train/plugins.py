"""Backbones and image readers of plugins, imported only when one is used."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from daptkit.data import Format, Readers
from daptkit.data.image import Log
from daptkit.errors import DataError, PluginError, UsageError, did_you_mean
from daptkit.host import Loaded, load_models, load_readers
from daptkit.host.discovery import DISABLE_VARIABLE, discover
from daptkit.host.isolation import describe
from daptkit.model.config import built_in_owner
from daptkit.plugin import ReaderSpec, build_options

ReaderOptions = Mapping[str, Mapping[str, Any]]
"""Reader to option to value."""

_READER_BREAK = re.compile(r",(?=[A-Za-z][\w-]*\.[A-Za-z][\w-]*=)")


def plugin_backbones() -> dict[str, Callable[..., Any]]:
    """Return the backbones that plugins declare, by name; a plugin is imported when called."""
    return {name: partial(_backbone, name) for name in discover().names("model")}


def model_package(name: str) -> str | None:
    """Return package and version of the plugin that a model is of; ``None`` for a built-in one."""
    entry = discover().find("model", name)
    return None if entry is None else entry.origin


def model_warning(name: str) -> str | None:
    """Return a warning where a model is a plugin's and timm or daptkit has one of its name."""
    entry, owner = discover().find("model", name), built_in_owner(name)
    if entry is None or owner is None:
        return None
    return (
        f"warning: model {name} is that of package {entry.origin}, not {owner}'s; set"
        f" {DISABLE_VARIABLE}={entry.package} to use {owner}'s."
    )


def _backbone(name: str, **arguments: Any) -> Any:
    return load_models([name])[0].load_factory()(**arguments)


def parse_reader_options(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read ``READER.OPTION=VALUE`` texts; a text may hold several, separated by commas.

    Raises:
        UsageError: a text of another form, or an option given twice.
    """
    parsed: dict[str, dict[str, str]] = {}
    for text in (part.strip() for given in texts for part in _READER_BREAK.split(given)):
        match = re.fullmatch(r"([A-Za-z][\w-]*)\.([A-Za-z][\w-]*)=(.*)", text)
        if match is None:
            raise UsageError(f"--reader-options takes READER.OPTION=VALUE, not {text!r}.")
        reader, name, value = match.groups()
        options = parsed.setdefault(reader, {})
        if options.setdefault(name.replace("-", "_"), value) != value:
            raise UsageError(f"--reader-options gives {reader}.{name} twice.")
    return parsed


def plugin_readers(log: Log, options: ReaderOptions | None = None) -> Readers:
    """Return the readers of installed plugins.

    Their torch-free halves are imported, since only they know the extensions; the decoder itself
    is imported when the first file asks for it.

    Args:
        log: told one line of each reader that is broken, or comes second for an extension.
        options: reader to option to value; defaults where a reader or an option is not named.

    Raises:
        UsageError: options of a reader that is not installed, unknown ones or values out of bounds.
    """
    given = dict(options or {})
    found = discover().names("reader")
    for name in given:
        if name not in found:
            raise UsageError(
                f"--reader-options: there is no reader {name!r} (have: {', '.join(found) or 'none'}"
                f").{did_you_mean(name, found)}"
            )
    formats: list[Format] = []
    origins: dict[str, str] = {}
    for loaded in load_readers(log=log) if found else ():
        made: Any = build_options(
            loaded.spec.options, given.get(loaded.spec.name, {}), f"{loaded.spec.name}."
        )
        own = []
        for extension in loaded.spec.extensions:
            first = origins.setdefault(extension, loaded.origin)
            if first == loaded.origin:
                own.append(extension)
            else:
                log(f"warning: {first} reads '{extension}' files; {loaded.origin} is not used.")
        formats.append(_format(loaded, tuple(own), made, log))
    return Readers(formats)


def _sniffer(
    loaded: Loaded[ReaderSpec], sniff: Callable[[bytes], bool], log: Log
) -> Callable[[bytes], bool]:
    """Return a sniff that a broken plugin can fail once, with a line, and nothing else."""
    faults: list[str] = []

    def guarded(start: bytes) -> bool:
        if faults:
            return False
        try:
            return bool(sniff(start))
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            faults.append(describe(error))
            log(f"warning: {loaded.origin} is not used for files without extension: {faults[0]}.")
            return False

    return guarded


def _format(
    loaded: Loaded[ReaderSpec], extensions: tuple[str, ...], options: Any, log: Log
) -> Format:
    spec = loaded.spec
    extra = (options,) if dataclasses.fields(options) else ()

    def function(name: str) -> Callable[..., Any]:
        resolve = cache(partial(loaded.load_function, name))

        def call(*arguments: Any) -> Any:
            try:
                found = resolve()
            except PluginError as error:
                # The reason why an image cannot be read is a DataError; it names the package.
                raise DataError(str(error)) from error
            return found(*arguments)

        return call

    def optional(name: str | None) -> Callable[..., Any] | None:
        return None if name is None else function(name)

    read, count = function(spec.factory), optional(spec.count)
    return Format(
        name=spec.name,
        extensions=extensions,
        read=lambda path, frame: read(path, frame, *extra),
        count=None if count is None else lambda path: int(count(path, *extra)),
        sniff=None if spec.sniff is None else _sniffer(loaded, function(spec.sniff), log),
        identify=optional(spec.identify),
        origin=f"{loaded.package} {loaded.version}",
        options=dataclasses.asdict(options),
    )
