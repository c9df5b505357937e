"""Entry points of the installed packages, read several times faster than importlib.metadata.

Importing ``importlib.metadata`` takes longer than the rest of ``daptkit plugins list``, because it
brings the parsers of e-mail and zip files along. Packages that installers put into plain folders
need neither: a ``*.dist-info`` or ``*.egg-info`` folder holds ``entry_points.txt`` and a file whose
first lines give name and version (Python packaging guide, "Recording installed projects" and
"Entry points specification"). Where the path holds anything else, importlib.metadata answers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder


@dataclass(frozen=True, kw_only=True)
class Point:
    """One entry point and the distribution that declares it."""

    group: str
    name: str
    value: str
    package: str
    version: str


def entry_points(groups: Collection[str]) -> list[Point]:
    """Return the entry points of these groups, over all distributions on ``sys.path``.

    Of two distributions of one name the one that comes first on the path counts.
    """
    reader = _from_folders if _only_folders() else _from_standard_library
    return [p for p in reader(groups) if p.group in groups]


def _only_folders() -> bool:
    """Whether every distribution must lie in a plain folder of the path."""
    foreign = [f for f in sys.meta_path if f is not PathFinder and hasattr(f, "find_distributions")]
    unusual = [p for p in sys.path if p.endswith(".egg") or os.path.isfile(p)]  # noqa: PTH113
    # A missing python311.zip is on every path; an existing archive may hold distributions.
    return not foreign and not unusual


def _from_folders(groups: Collection[str]) -> Iterator[Point]:
    seen: set[str] = set()
    for folder in dict.fromkeys(sys.path):
        for info in _metadata_folders(folder or "."):
            key = _project_key(os.path.basename(info))  # noqa: PTH119 - pathlib is slow to import
            if key in seen:
                continue
            seen.add(key)
            text = _read(info, "entry_points.txt")
            points = [p for p in _parse(text) if p[0] in groups]
            if points:
                package, version = _name_and_version(info)
                for group, name, value in points:
                    yield Point(
                        group=group, name=name, value=value, package=package, version=version
                    )


def _metadata_folders(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - pathlib is slow to import
    except OSError:
        return []  # the path may name folders that do not exist
    return [f"{folder}/{n}" for n in names if n.lower().endswith((".dist-info", ".egg-info"))]


def _project_key(folder_name: str) -> str:
    """Return the project's normal form: ``Daptkit_X-1.0.dist-info`` gives ``daptkit_x``."""
    stem = folder_name.rpartition(".")[0]
    return stem.partition("-")[0].lower().replace(".", "_")


def _parse(text: str) -> Iterator[tuple[str, str, str]]:
    group = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1]
        elif "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield group, name.strip(), value.strip()


def _name_and_version(info: str) -> tuple[str, str]:
    fields: dict[str, str] = {}
    for line in (_read(info, "METADATA") or _read(info, "PKG-INFO")).splitlines():
        if not line.strip():
            break  # the description follows
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    return fields.get("name", "unnamed-package"), fields.get("version", "unknown")


def _read(folder: str, name: str) -> str:
    try:
        with open(f"{folder}/{name}", encoding="utf-8") as file:  # noqa: PTH123 - as above
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""  # most packages declare no entry points


def _from_standard_library(groups: Iterable[str]) -> Iterator[Point]:
    import importlib.metadata

    for group in groups:
        for point in importlib.metadata.entry_points(group=group):
            if point.dist is not None:
                yield Point(
                    group=group,
                    name=point.name,
                    value=point.value,
                    package=point.dist.metadata["Name"] or "unnamed-package",
                    version=point.dist.version or "unknown",
                )
