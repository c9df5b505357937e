"""Factory strings ``"module:name"``: checked without importing, and resolved when needed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterable
from typing import Any

from daptkit.errors import did_you_mean
from daptkit.host.isolation import PluginFault, guarded

_FORM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def check_factory(factory: str) -> None:
    """Check that a factory exists, reading its module's source instead of importing it.

    Raises:
        PluginFault: malformed, or the module or the name in it is missing.
    """
    module, name = _split(factory)
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise PluginFault(f"factory {factory!r}: there is no module {module!r}")
    source = getattr(found.loader, "get_source", lambda _: None)(module)
    if source is None:
        return  # compiled or built in: only an import can tell
    tree = ast.parse(source, filename=module)
    names = set(_top_level_names(tree.body))
    if name not in names and "*" not in names and "__getattr__" not in names:
        raise PluginFault(
            f"factory {factory!r}: module {module!r} has no {name!r}.{did_you_mean(name, names)}"
        )


def resolve_factory(factory: str) -> Any:
    """Import a factory.

    Raises:
        PluginFault: the import raises or the name is missing.
    """
    module, name = _split(factory)
    with guarded(f"importing its factory {factory!r}", timeout=None):
        found = importlib.import_module(module)
    try:
        return getattr(found, name)
    except AttributeError:
        raise PluginFault(f"factory {factory!r}: module {module!r} has no {name!r}") from None


def _split(factory: str) -> tuple[str, str]:
    if not isinstance(factory, str) or not _FORM.fullmatch(factory):
        raise PluginFault(f"factory must have the form 'module:name', not {factory!r}")
    module, _, name = factory.partition(":")
    return module, name


def _top_level_names(body: Iterable[ast.stmt]) -> Iterable[str]:
    """Names that the statements bind, also inside ``if``, ``try`` and ``with``."""
    for statement in body:
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield statement.name
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            yield from (a.asname or a.name.partition(".")[0] for a in statement.names)
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            yield from (n.id for n in ast.walk(statement) if isinstance(n, ast.Name))
        elif isinstance(statement, (ast.If, ast.Try, ast.With)):
            for block in ("body", "orelse", "finalbody"):
                yield from _top_level_names(getattr(statement, block, ()))
            for handler in getattr(statement, "handlers", ()):
                yield from _top_level_names(handler.body)
