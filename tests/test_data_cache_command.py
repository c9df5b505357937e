"""``daptkit data cache``: what it shows, what it removes, what it leaves."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from daptkit.cli.data_cache import command
from daptkit.cli.main import run
from daptkit.data.store import layouts_in
from daptkit.errors import UsageError
from daptkit.recipes.caching import PARTS, cache_info, clear_cache
from store_tools import fill, keys
from store_tools import open_store as opened

HEX = "0123456789abcdef"
DECODED_BYTES = 5 * 192 + 88 + 5 * 36


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache with two layouts, one entry of each other part, and files of others."""
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("DAPTKIT_CACHE_LIMIT", raising=False)
    for number in range(2):
        store = opened(tmp_path / "decoded", conversion={"number": number})
        fill(store, 5)
        store.close()
    twin = tmp_path / "twins" / (HEX * 4) / "model"
    twin.mkdir(parents=True)
    (twin / "model.safetensors").write_bytes(b"x" * 700)
    for part, name in [("features", f"{HEX * 4}.safetensors"), ("stages", f"{HEX * 4}.json")]:
        (tmp_path / part).mkdir()
        (tmp_path / part / name).write_bytes(b"x" * 300)
        (tmp_path / part / f".{name}.{HEX * 2}").write_bytes(b"x" * 20)
    for part in PARTS:
        (tmp_path / part / "mine").mkdir()
        (tmp_path / part / "mine" / "thesis.txt").write_text("irreplaceable")
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert run(["data", "cache", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_info_tells_what_each_part_takes(cache, capsys) -> None:
    told = answer(capsys, "--info")
    assert told == answer(capsys), "nothing asked for is --info"
    assert told["decoded"] == {
        "folder": str(cache / "decoded"),
        "bytes": 2 * DECODED_BYTES,
        "images": 10,
        "layouts": 2,
        "limit": 20 * 2**30,
    }
    entries = {part: (told[part]["bytes"], told[part]["entries"]) for part in PARTS[1:]}
    assert entries == {"features": (320, 2), "stages": (320, 2), "twins": (700, 1)}
    assert run(["data", "cache", "--info"]) == 0
    out = capsys.readouterr().out
    assert "of 20.0 GB" in out and "10 images, 2 layouts" in out and str(cache / "twins") in out


def test_info_of_an_empty_cache_makes_nothing(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("DAPTKIT_CACHE_LIMIT", "0.5")
    told = answer(capsys, "--info")
    assert told["decoded"]["limit"] == 2**29
    assert told["decoded"]["images"] == told["twins"]["entries"] == 0
    assert not (tmp_path / "none").exists()


def theses(cache: Path) -> int:
    return sum(p.read_text() == "irreplaceable" for p in cache.rglob("thesis.txt"))


def test_clear_removes_decoded_images_alone_and_skips_those_in_use(cache, capsys) -> None:
    store = opened(cache / "decoded", conversion={"number": 1})
    told = answer(capsys, "--clear")
    assert told == {"decoded": {"bytes": DECODED_BYTES, "entries": 1, "in_use": 1}}
    assert (store.find(keys(5)) >= 0).all() and len(layouts_in(cache / "decoded")) == 1
    assert run(["data", "cache", "--clear"]) == 0
    assert "kept 1 layout in use by a running process" in capsys.readouterr().out
    store.close()
    assert answer(capsys, "--clear", "decoded")["decoded"]["in_use"] == 0
    info = cache_info()
    assert info.images == 0 and info.parts["features"].entries == 2 and theses(cache) == 4


def test_clear_of_one_part_leaves_the_others(cache, capsys) -> None:
    told = answer(capsys, "--clear", "twins")
    assert told == {"twins": {"bytes": 700, "entries": 1, "in_use": 0}}
    info = cache_info()
    assert (info.images, info.parts["twins"].entries, info.parts["stages"].entries) == (10, 0, 2)


def test_clear_all_leaves_what_is_not_ours_or_may_be_being_written(cache, capsys) -> None:
    (old,) = (cache / "stages").glob(".*")
    os.utime(old, (time.time() - 10**6,) * 2)
    assert run(["data", "cache", "--clear", "all"]) == 0
    assert capsys.readouterr().out.count("removed") == len(PARTS)
    left = {part: found.entries for part, found in cache_info().parts.items()}
    assert left == {"decoded": 0, "features": 1, "stages": 0, "twins": 0} and theses(cache) == 4


def test_another_folder_of_decoded_images(cache, tmp_path, capsys) -> None:
    elsewhere = tmp_path / "elsewhere"
    fill(opened(elsewhere), 3)
    assert answer(capsys, "--cache", str(elsewhere))["decoded"]["images"] == 3
    told = answer(capsys, "--clear", "--cache", str(elsewhere))
    assert told["decoded"]["entries"] == 1 and cache_info().images == 10
    assert clear_cache(cache=elsewhere)["decoded"].entries == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--info", "--clear"], "give one of them"),
        (["--clear", "everything"], "is not one of"),
        (["--cache", "nowhere"], "no such folder"),
    ],
)
def test_usage_errors(cache, capsys, arguments, says) -> None:
    assert run(["data", "cache", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err


def test_a_malformed_limit_is_a_usage_error(cache, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE_LIMIT", "20GB")
    assert run(["data", "cache", "--info"]) == 2
    assert "DAPTKIT_CACHE_LIMIT" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["decoded", "twins"])
def test_what_cannot_be_removed_is_an_error(cache, monkeypatch, capsys, part) -> None:
    def refuse(*arguments: object, **others: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr("daptkit.recipes.caching.shutil.rmtree", refuse)
    assert run(["data", "cache", "--clear", part]) == 1
    assert "Permission denied" in capsys.readouterr().err


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="decoded, features, stages, twins"):
        clear_cache("all")


def test_the_command_offers_every_part() -> None:
    (option,) = (p for p in command.params if p.name == "clear")
    assert tuple(option.type.choices) == (*PARTS, "all")


def test_the_group_lists_its_commands(capsys) -> None:
    assert run(["data", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name}  " in out for name in ("check", "simulate", "cache"))
    assert run(["data", "cahce"]) == 2
    assert "Did you mean 'cache'?" in capsys.readouterr().err
