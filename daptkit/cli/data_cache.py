"""``daptkit data cache``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from daptkit.cli.lazy import debug_option
from daptkit.cli.output import print_columns, print_json
from daptkit.doctor.machine import readable
from daptkit.errors import UsageError

if TYPE_CHECKING:
    from daptkit.recipes.caching import CacheInfo, Cleared

_DECODED, _ALL = "decoded", "all"


@click.command(
    "cache",
    epilog="What a running daptkit uses stays, and is counted. Example: daptkit data cache --clear",
)
@click.option("--info", is_flag=True, help="Show what the cache holds; also without any option.")
@click.option(
    "--clear",
    is_flag=False,
    flag_value=_DECODED,
    type=click.Choice([_DECODED, "features", "stages", "twins", _ALL]),
    help=f"Remove a part of the cache, {_DECODED} where none is named: decoded images, features of"
    " frozen models, distances at their stages, source-only models.",
)
@click.option(
    "--cache",
    metavar="DIR",
    help="Folder of the decoded images, as given to adapt (the user's cache).",
)
@click.option("--json", is_flag=True, help="Print what there is, or what was removed, as JSON.")
def command(info: bool, clear: str | None, cache: str | None, json: bool) -> None:
    """Show what the cache holds, or clear it.

    Decoded images are the part that grows; their limit is the environment variable
    DAPTKIT_CACHE_LIMIT, in GiB. Anything cleared is made again when a run needs it.
    """
    if info and clear:
        raise UsageError("--info and --clear are two commands; give one of them.")
    from dataclasses import asdict

    from daptkit.recipes.caching import PARTS, cache_info, clear_cache

    if clear is None:
        found = cache_info(cache)
        if json:
            print_json(_info_json(found))
        else:
            _print_info(found)
        return
    removed = clear_cache(*(PARTS if clear == _ALL else (clear,)), cache=cache)
    if json:
        print_json({part: asdict(result) for part, result in removed.items()})
        return
    for part, result in removed.items():
        click.echo(_removed(part, result))


def _info_json(info: CacheInfo) -> dict[str, object]:
    parts = {
        name: {"folder": str(part.folder), "bytes": part.bytes, "entries": part.entries}
        for name, part in info.parts.items()
    }
    decoded = parts[_DECODED]
    decoded["layouts"] = decoded.pop("entries")
    return {**parts, _DECODED: {**decoded, "images": info.images, "limit": info.limit}}


def _print_info(info: CacheInfo) -> None:
    rows = []
    for name, part in info.parts.items():
        size, content = readable(part.bytes), _count(part.entries, "entry", "entries")
        if name == _DECODED:
            size += f" of {readable(info.limit)}"
            images = _count(info.images, "image", "images")
            content = f"{images}, {_count(part.entries, 'layout', 'layouts')}"
        rows.append((name, size, content, str(part.folder)))
    print_columns(("PART", "SIZE", "CONTENT", "FOLDER"), rows)


def _removed(part: str, result: Cleared) -> str:
    noun = ("layout", "layouts") if part == _DECODED else ("entry", "entries")
    text = f"{part}: removed {_count(result.entries, *noun)}, {readable(result.bytes)}"
    if result.in_use:
        text += f"; kept {_count(result.in_use, *noun)} in use by a running process"
    return text


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


debug_option(command)
