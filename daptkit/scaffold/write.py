"""Writing a plugin package whose tests pass as written."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from daptkit import __version__
from daptkit.errors import UsageError, did_you_mean
from daptkit.host.discovery import discover
from daptkit.host.entry import GROUPS
from daptkit.host.isolation import PluginFault
from daptkit.host.validate import check_name, check_score_name
from daptkit.run import atomic_write, writing

KINDS = tuple(GROUPS.values())
_GROUP_OF = {kind: group for group, kind in GROUPS.items()}
_TEMPLATES = Path(__file__).parent / "templates"
_SUFFIX = ".in"
_NAME = re.compile(r"[a-z]([a-z0-9_-]*[a-z0-9])?")


class _Template(string.Template):
    """``%%{name}`` is replaced; ``$`` and ``@`` mean something else in the files."""

    delimiter = "%%"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A new package.

    Args:
        kind: of the plugin.
        name: of the plugin.
        package: of the distribution.
        folder: where it is.
        files: what it holds, relative to the folder.
    """

    kind: str
    name: str
    package: str
    folder: str
    files: list[str]


def new_plugin(name: str, *, kind: str = "method", out: str | Path | None = None) -> Written:
    """Write a package of one plugin: code, tests, README and CI.

    Args:
        name: name of the plugin: small letters, digits, ``-`` and ``_``.
        kind: one of :data:`KINDS`.
        out: new or empty folder; ``daptkit-NAME`` if ``None``.

    Raises:
        UsageError: the name cannot be used or is taken, or the folder is not empty.
        DaptkitError: the folder cannot be written.
    """
    _check(name, kind)
    fields = _fields(name, kind)
    folder = Path(out) if out is not None else Path(fields["package"])
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out '{folder}' is a file; name a folder that is new or empty.")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"'{folder}' is not empty; name another folder with --out.")
    contents = dict(_contents(kind, fields))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for file, text in contents.items():
        atomic_write(folder / file, text)
    return Written(
        kind=kind,
        name=name,
        package=fields["package"],
        folder=str(folder),
        files=sorted(contents),
    )


def _check(name: str, kind: str) -> None:
    if kind not in KINDS:
        raise UsageError(
            f"--kind is one of {', '.join(KINDS)}, not {kind!r}.{did_you_mean(kind, KINDS)}"
        )
    try:
        check_name(name)
        if kind == "score":
            check_score_name(name)
    except PluginFault as fault:
        raise UsageError(f"{fault}.") from fault
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"the name {name!r} would not make a package: start with a small letter, go on with"
            " small letters, digits, '-' and '_', end with a letter or digit."
        )
    owner = discover().find(kind, name)
    if owner is not None:
        raise UsageError(f"the name {name!r} is taken by {owner.origin}; choose another.")
    if kind == "model":
        _check_model(name)


def _check_model(name: str) -> None:
    # Imports torch, which no other kind needs here.
    from daptkit.model.config import built_in_owner

    owner = built_in_owner(name)
    if owner is not None:
        raise UsageError(
            f"the name {name!r} is that of a model of {owner}, which a plugin of this name would"
            " stand in for; choose another."
        )


def _fields(name: str, kind: str) -> dict[str, str]:
    """Return what templates may ask for."""
    module = "daptkit_" + name.replace("-", "_")
    words = re.split(r"[-_]", name)
    group = _GROUP_OF[kind]
    return {
        "name": name,
        "kind": kind,
        "package": "daptkit-" + name.replace("_", "-"),
        "module": module,
        "identifier": name.replace("-", "_"),
        "constant": name.replace("-", "_").upper(),
        "extension": "." + name.replace("-", "_"),
        "camel": "".join(word.capitalize() for word in words),
        "group": group if "." not in group else f'"{group}"',
        "bound": _bound(__version__),
    }


def _bound(version: str) -> str:
    """Return which versions of daptkit keep the contract: those of one minor version below 1."""
    major, minor = (int(part) for part in version.split(".")[:2])
    above = f"{major + 1}" if major else f"0.{minor + 1}"
    return f">={major}.{minor},<{above}"


def _contents(kind: str, fields: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each file's path in the package and its text."""
    # No tool is to take a template for a file of this project, so some have other names here.
    words = {"DOT": ".", "TESTS": "tests", "MODULE": fields["module"]}
    words["IDENTIFIER"] = fields["identifier"]
    for part in ("common", kind):
        root = _TEMPLATES / part
        for template in sorted(root.rglob(f"*{_SUFFIX}")):
            place = str(template.relative_to(root)).removesuffix(_SUFFIX)
            text = template.read_text(encoding="utf-8")
            for word, meant in words.items():
                place = place.replace(word, meant)
            yield place, _Template(text).substitute(fields)
