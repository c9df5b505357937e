"""Decode cache: killed processes, several at once, its limit, full and read-only disks."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from daptkit.data.store import DecodeCache, cache_limit, layout, layouts_in, remove_layout, writer
from daptkit.errors import UsageError
from store_tools import CONVERSION, end_of, files, fill, images, in_child, keys, read
from store_tools import open_store as opened

SHARD = 8 * 192 + 88 + 8 * 36
"""Bytes of the two files of a full shard of these tests."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_RECORDS", 8)


# A shard syncs its records, the folder, its index and the folder. The third one's records are
# still unnamed at 9, named at 10; its index is unnamed at 11, and named at 12.
@pytest.mark.parametrize(
    ("sync", "kept", "left"), [(9, 16, 1), (10, 16, 1), (11, 16, 2), (12, 24, 0)]
)
def test_what_was_published_survives_sigkill_and_the_rest_is_removed(
    tmp_path: Path, sync: int, kept: int, left: int
) -> None:
    def dying() -> None:
        count = 0

        def sync_or_die(handle: int) -> None:
            nonlocal count
            count += 1
            if count == sync:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = sync_or_die  # of this child alone
        fill(opened(tmp_path), 40)

    assert end_of(in_child(dying)) == -signal.SIGKILL
    assert len(files(tmp_path)) == kept // 8 * 2 + left
    lines: list[str] = []
    store = opened(tmp_path, lines)
    assert (store.find(keys(40)) >= 0).tolist() == [True] * kept + [False] * (40 - kept)
    assert np.array_equal(read(store, keys(kept)), images(kept))
    assert len(files(tmp_path)) == kept // 8 * 2 and lines == []


def test_leftovers_stay_while_another_process_may_be_writing_them(tmp_path: Path) -> None:
    holder = opened(tmp_path)
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    names = [f"{'a' * 32}.bin", f".{'b' * 32}.bin.{'c' * 32}", f"{'d' * 32}.bad", "notes.txt"]
    for name in names:
        (folder / name).touch()
    opened(tmp_path)
    assert files(tmp_path) == sorted(names)
    holder.close()
    opened(tmp_path)
    assert files(tmp_path) == ["notes.txt"], "what is not ours stays"


def test_a_writer_killed_from_outside_harms_nobody(tmp_path: Path) -> None:
    reader = opened(tmp_path)

    def endless() -> None:
        store = opened(tmp_path)
        with store.writer() as adding:
            for i in range(10**6):
                adding.add(keys(1, i)[0], images(1, i)[0])

    child = in_child(endless)
    deadline = time.monotonic() + 30
    while (reader.find(keys(1, 30)) < 0).all() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert end_of(child) == -signal.SIGKILL
    there = int((reader.find(keys(2000)) >= 0).sum())
    assert there >= 31 and np.array_equal(read(reader, keys(there)), images(there))
    fill(reader, there + 10)
    assert np.array_equal(read(reader, keys(there + 10)), images(there + 10))


def test_two_processes_write_the_same_images_once(tmp_path: Path) -> None:
    go, ready = os.pipe()

    def writing(order: range) -> None:
        store = opened(tmp_path)
        os.read(go, 1)
        with store.writer() as adding:
            for i in order:
                adding.add(keys(1, i)[0], images(1, i)[0])
        assert np.array_equal(read(store, keys(100)), images(100))

    children = [
        in_child(lambda order=order: writing(order))
        for order in (range(100), range(100), range(99, -1, -1))
    ]
    os.write(ready, b"...")
    assert [end_of(child) for child in children] == [0, 0, 0]
    os.close(go), os.close(ready)
    (use,) = layouts_in(tmp_path)
    assert use.images == 100
    assert np.array_equal(read(opened(tmp_path), keys(100)), images(100))


def test_a_stopped_process_holds_up_nobody_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "_PATIENCE", 0.05)
    store = opened(tmp_path)
    with (tmp_path / layout.LOCK).open("w") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        fill(store, 3)
    assert np.array_equal(read(store, keys(3)), images(3))


def old_layout(root: Path, number: int, age: float) -> Path:
    """A layout of one shard that was used some seconds ago and is no longer."""
    store = opened(root, conversion={"number": number})
    fill(store, 8)
    store.close()
    (folder,) = (use.folder for use in layouts_in(root) if use.used > time.time() - 60)
    used = time.time() - age
    os.utime(folder / layout.LOCK, (used, used))
    return folder


def test_the_longest_unused_layout_makes_room(tmp_path: Path) -> None:
    young, old = old_layout(tmp_path, 1, 1000), old_layout(tmp_path, 2, 2000)
    assert [use.folder for use in layouts_in(tmp_path)] == [old, young]
    lines: list[str] = []
    store = opened(tmp_path, lines, limit=3 * SHARD)
    fill(store, 16)
    assert not old.exists() and young.exists() and lines == []
    assert sum(use.bytes for use in layouts_in(tmp_path)) == 3 * SHARD
    assert np.array_equal(read(store, keys(16)), images(16))


def test_opening_counts_as_use(tmp_path: Path) -> None:
    first, second = old_layout(tmp_path, 1, 2000), old_layout(tmp_path, 2, 1000)
    opened(tmp_path, conversion={"number": 1}).close()
    fill(opened(tmp_path, limit=2 * SHARD), 8)
    assert first.exists() and not second.exists()


def test_a_layout_in_use_stays_and_further_images_are_not_kept(tmp_path: Path) -> None:
    used = opened(tmp_path, conversion={"number": 1})
    fill(used, 8)
    lines: list[str] = []
    cache = DecodeCache(tmp_path, limit=3 * SHARD - 1, log=lines.append)
    store = cache.open(CONVERSION, (3, 8, 8), np.uint8)
    for _ in range(2):
        fill(store, 30)
    assert np.array_equal(read(used, keys(8)), images(8))
    assert (store.find(keys(30)) >= 0).tolist() == [True] * 8 + [False] * 22
    assert len(lines) == 1 and "DAPTKIT_CACHE_LIMIT" in lines[0] and "--clear" in lines[0]
    assert len(files(tmp_path)) == 4


def test_nothing_is_removed_where_that_could_not_make_room(tmp_path: Path) -> None:
    old = old_layout(tmp_path, 1, 1000)
    lines: list[str] = []
    fill(opened(tmp_path, lines, limit=SHARD - 1), 8)
    assert old.exists() and "full" in lines[0]
    fill(opened(tmp_path, lines, limit=0), 8)
    assert old.exists()
    store = opened(tmp_path)
    fill(store, 8)
    fill(opened(tmp_path, lines, limit=2 * SHARD - 1), 16)
    assert old.exists(), "the layout that is written does not count as room"


def test_a_layout_is_not_removed_under_its_user_and_can_be_made_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    fill(store, 8)
    (use,) = layouts_in(tmp_path)
    assert remove_layout(use.folder) is None and use.bytes == SHARD and use.images == 8
    store.close()
    assert remove_layout(use.folder) == SHARD and not use.folder.exists()
    assert remove_layout(use.folder) == 0
    again = opened(tmp_path)
    fill(again, 8)
    assert np.array_equal(read(again, keys(8)), images(8))


def test_a_layout_removed_while_it_is_opened_is_opened_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between taking the lock and looking at it another process removes the folder."""
    fill(opened(tmp_path), 8)
    flock, removed = fcntl.flock, []

    def racing(handle: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH and not removed:
            (use,) = layouts_in(tmp_path)
            flock(handle, fcntl.LOCK_UN)
            removed.append(remove_layout(use.folder))
        flock(handle, operation)

    monkeypatch.setattr(layout.fcntl, "flock", racing)
    store = opened(tmp_path)
    assert removed == [SHARD] and store.find(keys(1)).tolist() == [-1]
    fill(store, 8)
    (use,) = layouts_in(tmp_path)
    assert remove_layout(use.folder) is None, "the new lock is the one that is held"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("first", [1, 3], ids=["records", "index"])
def test_a_disk_that_takes_no_more_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, first: int
) -> None:
    lines: list[str] = []
    store = opened(tmp_path, lines)
    fill(store, 8)
    syncs = 0

    def full(handle: int) -> None:
        nonlocal syncs
        syncs += 1
        if syncs >= first:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    fill(store, 40)
    assert len(lines) == 1 and os.strerror(number) in lines[0] and "--cache" in lines[0]
    assert str(tmp_path) not in lines[0]
    assert len(files(tmp_path)) == 2 and np.array_equal(read(store, keys(8)), images(8))
    assert (store.find(keys(40, 8)) < 0).all()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    lines: list[str] = []
    for root in (tmp_path / "file", tmp_path / "file" / "decoded"):
        store = opened(root, lines)
        fill(store, 20)
        assert (store.find(keys(20)) < 0).all()
    assert len(lines) == 2 and all("--cache DIR" in line for line in lines)


def test_a_read_only_cache_is_read_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(tmp_path, conversion={"no": "lock"}).close()
    (unlocked,) = (use.folder for use in layouts_in(tmp_path))
    (unlocked / layout.LOCK).unlink()
    fill(opened(tmp_path), 8)
    (full,) = (use.folder for use in layouts_in(tmp_path) if use.images)
    (full / f"{'a' * 32}.bin").touch()
    by_handle, by_path = os.open, Path.open

    def refuse(*arguments: object, **others: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def read_only(path: str, flags: int, *rest: int) -> int:
        return refuse() if flags & (os.O_RDWR | os.O_CREAT) else by_handle(path, flags, *rest)

    def opening(self: Path, mode: str = "r", **others: object) -> object:
        return by_path(self, mode, **others) if mode == "rb" else refuse()

    def making(path: Path, mode: int = 0o777) -> None:
        if Path(path).exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        refuse()

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "mkdir", making)
    monkeypatch.setattr(Path, "open", opening)
    for name in ("unlink", "touch"):
        monkeypatch.setattr(Path, name, refuse)
    lines: list[str] = []
    store = opened(tmp_path, lines)
    assert np.array_equal(read(store, keys(8)), images(8)) and lines == []
    fill(store, 20)
    assert len(lines) == 1 and os.strerror(errno.EROFS) in lines[0]
    for other in ({"new": 1}, {"no": "lock"}):
        assert opened(tmp_path, lines, conversion=other).find(keys(1)).tolist() == [-1]
    assert len(lines) == 3


def test_the_limit_is_a_number_of_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAPTKIT_CACHE_LIMIT", raising=False)
    assert cache_limit() == 20 * 2**30
    for text, limit in [("0.5", 2**29), (" 3 ", 3 * 2**30), ("0", 0), ("", 20 * 2**30)]:
        monkeypatch.setenv("DAPTKIT_CACHE_LIMIT", text)
        assert cache_limit() == limit
    for text in ("lots", "20GB", "-1", "nan", "inf"):
        monkeypatch.setenv("DAPTKIT_CACHE_LIMIT", text)
        with pytest.raises(UsageError, match="DAPTKIT_CACHE_LIMIT is a number of GiB"):
            DecodeCache()
