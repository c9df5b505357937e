"""Plugins that a run names: imported on demand, in this process, broken ones reported."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from daptkit.errors import DaptkitError, PluginError, UsageError, did_you_mean
from daptkit.host.discovery import DISABLE_VARIABLE, Discovery, discover
from daptkit.host.entry import Entry
from daptkit.host.factory import resolve_factory
from daptkit.host.isolation import PluginFault, describe, plugin_timeout, warn
from daptkit.host.registry import Finding, inspect_unit
from daptkit.host.validate import Spec
from daptkit.plugin import MethodSpec, ModelSpec, ReaderSpec, ScoreSpec

if TYPE_CHECKING:
    from daptkit.method import Method, TaskInfo

SpecT = TypeVar("SpecT", bound=Spec)

SHIPPED = {
    "dann": "daptkit-dann",
    "cdan": "daptkit-dann",
    "coral": "daptkit-coral",
    "mmd": "daptkit-mmd",
    "jmmd": "daptkit-mmd",
    "bbse": "daptkit-bbse",
    "mcc": "daptkit-pytorch-adapt",
    "bnm": "daptkit-pytorch-adapt",
    "infomax": "daptkit-pytorch-adapt",
    "afn": "daptkit-pytorch-adapt",
    "bsp": "daptkit-pytorch-adapt",
    "vat": "daptkit-pytorch-adapt",
    "mcd": "daptkit-pytorch-adapt",
}
"""Methods of the packages that are released together with daptkit."""


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[SpecT]):
    """A checked specification and the package it comes from.

    Args:
        spec: the specification.
        package: distribution that offers it.
        version: version of that distribution.
    """

    spec: SpecT
    package: str
    version: str

    @property
    def origin(self) -> str:
        """Kind, name, package and version, as messages show them."""
        kind = type(self.spec).__name__.removesuffix("Spec").lower()
        return f"{kind} {self.spec.name!r} of package {self.package} {self.version}"

    def load_factory(self) -> Callable[..., Any]:
        """Import the factory.

        Raises:
            PluginError: its import raises, or the factory is missing or cannot be called.
        """
        return self.load_function(self.spec.factory)

    def load_function(self, name: str) -> Callable[..., Any]:
        """Import what a ``"module:name"`` of the specification names.

        Raises:
            PluginError: its import raises, or the name cannot be called.
        """
        try:
            found = resolve_factory(name)
        except PluginFault as fault:
            raise PluginError(f"{self.origin} cannot be used: {fault}.") from fault
        if not callable(found):
            raise PluginError(f"{self.origin}: factory {name!r} cannot be called.")
        return cast("Callable[..., Any]", found)


@dataclass(frozen=True, kw_only=True)
class LoadedMethod(Loaded[MethodSpec]):
    """An adaptation method that a run named."""

    def load_factory(self) -> type[Method]:
        """Import the method's class; this imports torch.

        Raises:
            PluginError: its import raises, or it is no subclass of ``daptkit.method.Method``.
        """
        from daptkit.method import Method

        factory = super().load_factory()
        if not isinstance(factory, type) or not issubclass(factory, Method):
            raise PluginError(
                f"{self.origin}: factory {self.spec.factory!r} is no subclass of "
                "daptkit.method.Method."
            )
        return factory

    def create(self, options: Any, task: TaskInfo) -> Method:
        """Make the method.

        Args:
            options: instance of the specification's options dataclass.
            task: classes, sizes and source prior.

        Raises:
            PluginError: the factory or the constructor raises.
        """
        factory = self.load_factory()
        try:
            return factory(options, task)
        except DaptkitError:
            raise  # a method may refuse options or a task in its own words
        except Exception as error:  # isolation boundary: a plugin may raise anything
            raise PluginError(f"{self.origin} cannot start: {describe(error)}.") from error


def parse_method(text: str) -> list[str]:
    """Split ``"dann+bbse"`` into names; ``"none"``, which is source-only, gives no name.

    Raises:
        UsageError: an empty or repeated name, or ``none`` beside another.
    """
    names = [n.strip() for n in text.split("+")]
    if names == ["none"]:
        return []
    if "none" in names:
        raise UsageError(f"-m {text!r}: 'none' stands alone; leave it out or name nothing else.")
    if not all(names):
        raise UsageError(f"-m {text!r}: a name is missing; join methods as in 'dann+bbse'.")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"-m {text!r}: {name!r} is named twice.")
    return names


def load_methods(names: Sequence[str], *, log: Callable[[str], None] = warn) -> list[LoadedMethod]:
    """Import and check the named methods, and no other plugin.

    Args:
        names: method names, as :func:`parse_method` returns them.
        log: told one line when a name is declared by two packages.

    Raises:
        UsageError: no such method, or it is switched off.
        PluginError: a named plugin is broken, or two own one role.
    """
    if not names:
        return []
    found = discover()
    loaded = []
    for name in names:
        entry = found.find("method", name)
        if entry is None:
            raise UsageError(_unknown_method(name, found))
        for loser in (e for e, winner in found.duplicates if winner == entry):
            log(
                f"warning: method {name!r} is declared by {entry.origin} and {loser.origin}; "
                f"using {entry.package}. Uninstall one, or set "
                f"{DISABLE_VARIABLE}={entry.package} to use the other."
            )
        finding = _finding(found, entry)
        if not isinstance(finding.spec, MethodSpec):
            _refuse(f"method {name!r} of package {entry.origin} cannot be used: {finding.reason}")
        loaded.append(LoadedMethod(spec=finding.spec, package=entry.package, version=entry.version))
    _check_roles(loaded)
    return loaded


def method_options(text: str) -> dict[str, type]:
    """Return the options dataclass of each method that ``-m text`` names, in order.

    Warnings are left to :func:`load_methods`, which the run itself calls.

    Raises:
        UsageError: ``text`` cannot be read or names an unknown method.
        PluginError: a named plugin is broken, or two own one role.
    """
    methods = load_methods(parse_method(text), log=_discard)
    return {m.spec.name: m.spec.options for m in methods}


def _discard(text: str) -> None:
    return None


def load_models(
    names: Collection[str] | None = None, *, log: Callable[[str], None] = warn
) -> list[Loaded[ModelSpec]]:
    """Import the model plugins of these names, or all; names of no plugin (timm's) are left out.

    Raises:
        PluginError: a plugin that ``names`` asks for is broken. Without ``names`` a broken one
            is only told to ``log``.
    """
    found = discover()
    wanted = [e for e in found.active if e.kind == "model" and (names is None or e.name in names)]
    return _load_all(found, wanted, ModelSpec, log if names is None else _refuse)


def load_readers(
    extensions: Collection[str] | None = None, *, log: Callable[[str], None] = warn
) -> list[Loaded[ReaderSpec]]:
    """Import the reader plugins and return those for these extensions, or all.

    Metadata does not hold extensions, so every reader plugin is imported; call this only when a
    file asks for a format that daptkit does not read. A broken reader is told to ``log``.

    Args:
        extensions: lower-case file extensions with their dot.
        log: told one line for each broken plugin.
    """
    found = discover()
    entries = [e for e in found.active if e.kind == "reader"]
    loaded = _load_all(found, entries, ReaderSpec, log)
    if extensions is None:
        return loaded
    return [r for r in loaded if not set(extensions).isdisjoint(r.spec.extensions)]


def load_scores(*, log: Callable[[str, str], None]) -> list[Loaded[ScoreSpec]]:
    """Import the score plugins; a broken one is only told to ``log``.

    Args:
        log: told name and one line for each broken plugin.
    """
    found = discover()
    return [
        score
        for entry in found.active
        if entry.kind == "score"
        for score in _load_all(found, [entry], ScoreSpec, partial(log, entry.name))
    ]


def _load_all(
    found: Discovery, entries: Sequence[Entry], kind: type[SpecT], log: Callable[[str], None]
) -> list[Loaded[SpecT]]:
    loaded: list[Loaded[SpecT]] = []
    for entry in entries:
        finding = _finding(found, entry)
        if isinstance(finding.spec, kind):
            spec = cast("SpecT", finding.spec)
            loaded.append(Loaded(spec=spec, package=entry.package, version=entry.version))
        else:
            log(
                f"{entry.kind} {entry.name!r} of package {entry.origin} cannot be used: "
                f"{finding.reason}"
            )
    return loaded


def _refuse(text: str) -> NoReturn:
    raise PluginError(f"{text}. 'daptkit plugins list' shows every plugin.")


def _finding(found: Discovery, entry: Entry) -> Finding:
    findings = inspect_unit(found.unit(entry), plugin_timeout())
    return next(f for f in findings if (f.kind, f.name) == (entry.kind, entry.name))


def _unknown_method(name: str, found: Discovery) -> str:
    for entry in found.disabled:
        if (entry.kind, entry.name) == ("method", name):
            return (
                f"method {name!r} of package {entry.origin} is switched off by {DISABLE_VARIABLE}."
            )
    installed = found.names("method")
    known = ", ".join([*installed, "none"])
    if name in SHIPPED:
        return f"method {name!r} is not installed; 'pip install {SHIPPED[name]}' (have: {known})."
    return f"unknown method {name!r} (have: {known}).{did_you_mean(name, [*installed, 'none'])}"


def _check_roles(methods: Sequence[LoadedMethod]) -> None:
    owners: dict[str, LoadedMethod] = {}
    for method in methods:
        for role in sorted(method.spec.roles):
            owner = owners.setdefault(role, method)
            if owner is not method:
                raise PluginError(
                    f"{owner.origin} and {method.origin} both own {role!r}; "
                    "a run has one owner: name only one of them in -m."
                )
