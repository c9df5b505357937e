"""Decode cache: what goes in comes out; damage, threads and memory."""

from __future__ import annotations

import hashlib
import os
import re
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from daptkit.data.store import DecodeCache, decoded_folder, writer
from store_tools import CONVERSION, PLENTY, end_of, files, fill, images, in_child, keys, read
from store_tools import open_store as opened


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_RECORDS", 8)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_come_back_in_any_order_and_in_another_process(tmp_path: Path, dtype: type) -> None:
    store = opened(tmp_path, dtype=dtype)
    assert store.find(keys(3)).tolist() == [-1, -1, -1]
    fill(store, 20)
    assert len(files(tmp_path)) == 6, "three shards of up to eight records"
    order = np.random.default_rng(0).permutation(20)
    for again in (store, opened(tmp_path, dtype=dtype)):
        assert np.array_equal(read(again, keys(20)), images(20).astype(dtype))
        assert np.array_equal(read(again, [keys(20)[i] for i in order]), images(20)[order])


def test_rows_that_are_not_there_stay_as_they_are(tmp_path: Path) -> None:
    store = opened(tmp_path)
    fill(store, 9)
    slots = store.find([keys(1, 7)[0], keys(1, 99)[0], keys(1, 0)[0], keys(1, 0)[0]])
    assert slots.tolist()[1] == -1 and slots[2] == slots[3]
    out = np.full((4, *store.shape), 7, np.uint8)
    assert store.read(slots, out).tolist() == []
    assert np.array_equal(out[[0, 2, 3]], images(8)[[7, 0, 0]]) and (out[1] == 7).all()
    assert store.read(store.find([]), np.empty((0, *store.shape), np.uint8)).tolist() == []


def test_slots_stay_valid_while_others_add(tmp_path: Path) -> None:
    mine, other = opened(tmp_path), opened(tmp_path)
    fill(mine, 10)
    slots = mine.find(keys(10))
    fill(other, 10, first=10)
    assert (mine.find(keys(20)) >= 0).all(), "what another has added is found"
    assert mine.find(keys(10)).tolist() == slots.tolist()
    assert np.array_equal(read(mine, keys(20)), images(20))


@pytest.mark.parametrize(
    "change",
    [
        {"conversion": {**CONVERSION, "windows": {"int": [0, 4095]}}},
        {"shape": (1, 8, 8)},
        {"dtype": np.float32},
    ],
    ids=["conversion", "shape", "dtype"],
)
def test_another_conversion_shape_or_type_is_another_layout(tmp_path: Path, change: dict) -> None:
    fill(opened(tmp_path), 2)
    assert opened(tmp_path, **change).find(keys(2)).tolist() == [-1, -1]
    assert opened(tmp_path, conversion=dict(reversed(CONVERSION.items()))).find(keys(2))[0] == 0


def test_an_image_added_twice_is_kept_once(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with store.writer() as adding:
        for _ in range(3):
            adding.add(keys(1)[0], images(1)[0])
    assert adding.kept == 1
    with store.writer() as adding:
        adding.add(keys(1)[0], images(1)[0])
    assert adding.kept == 0 and len(files(tmp_path)) == 2


def test_what_was_added_before_an_error_is_kept(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(RuntimeError, match="of the caller"), store.writer() as adding:
        adding.add(keys(1)[0], images(1)[0])
        raise RuntimeError("of the caller")
    assert store.find(keys(1)).tolist() == [0]


def test_wrong_sizes_and_types_are_refused(tmp_path: Path) -> None:
    store = opened(tmp_path)
    good = images(1)[0]
    with store.writer() as adding:
        for key, image in [(b"short", good), (keys(1)[0], good[:1]), (keys(1)[0], good / 2)]:
            with pytest.raises(ValueError, match="the layout holds uint8"):
                adding.add(key, image)
    with pytest.raises(ValueError, match="32 bytes"):
        store.find([b"short"])
    for out in (np.empty((2, *store.shape), np.uint8), np.empty((1, *store.shape), np.float32)):
        with pytest.raises(ValueError, match="contiguous"):
            store.read(np.zeros(1, np.int64), out)
    with pytest.raises(ValueError, match="contiguous"):
        store.read(np.zeros(1, np.int64), np.empty((1, 8, 8, 3), np.uint8).transpose(0, 3, 1, 2))


def test_threads_add_and_read_at_once(tmp_path: Path) -> None:
    store, pixels = opened(tmp_path), images(200)
    with store.writer() as adding, ThreadPoolExecutor(8) as pool:
        list(pool.map(adding.add, keys(200), pixels))
    assert adding.kept == 200
    parts = [np.random.default_rng(i).integers(0, 200, 16) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda rows: read(store, [keys(200)[r] for r in rows]), parts))
    for rows, got in zip(parts, found, strict=True):
        assert np.array_equal(got, pixels[rows])


def test_few_shards_wait_in_memory_on_a_slow_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: weakref.WeakSet[writer._Batch] = weakref.WeakSet()
    most = 0

    class Counted(writer._Batch):
        def __init__(self, record_bytes: int) -> None:
            nonlocal most
            super().__init__(record_bytes)
            waiting.add(self)
            most = max(most, len(waiting))

    write = writer.write_shard
    monkeypatch.setattr(writer, "write_shard", lambda *a: (time.sleep(0.01), write(*a))[1])
    monkeypatch.setattr(writer, "_Batch", Counted)
    store = opened(tmp_path)
    with store.writer() as adding, ThreadPoolExecutor(12) as pool:
        list(pool.map(adding.add, keys(120), images(120)))
    # One is being filled, one written, and one may be on its way out of a thread.
    assert 2 <= most <= 3 and np.array_equal(read(store, keys(120)), images(120))


def test_both_domains_share_an_open_layout(tmp_path: Path) -> None:
    cache = DecodeCache(tmp_path, limit=PLENTY)
    assert cache.open(CONVERSION, (3, 8, 8), "u1") is cache.open(CONVERSION, [3, 8, 8], np.uint8)
    assert DecodeCache().root == decoded_folder()


def test_a_flipped_byte_costs_one_image_now_and_the_shard_later(tmp_path: Path) -> None:
    fill(opened(tmp_path), 8)
    (records,) = tmp_path.rglob("*.bin")
    data = bytearray(records.read_bytes())
    data[5 * 192 + 17] ^= 4
    records.write_bytes(data)
    lines: list[str] = []
    store = opened(tmp_path, lines)
    out = np.empty((8, *store.shape), np.uint8)
    for turn in (1, 2):
        assert store.read(store.find(keys(8)), out).tolist() == [5]
        assert np.array_equal(np.delete(out, 5, axis=0), np.delete(images(8), 5, axis=0))
        assert store.damaged == turn
    assert len(lines) == 1 and "damaged" in lines[0] and str(tmp_path) not in lines[0]
    beside = opened(tmp_path)
    assert beside.find(keys(8)).tolist() == [-1] * 8, "ignored, though in use and not removed"
    del store
    beside.close()
    fresh = opened(tmp_path)
    assert files(tmp_path) == []
    fill(fresh, 8)
    assert np.array_equal(read(fresh, keys(8)), images(8))


def test_a_file_cut_short_while_in_use_is_decoded_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    fill(store, 8)
    read(store, keys(8))  # checked before, and to be distrusted all the same
    (records,) = tmp_path.rglob("*.bin")
    os.truncate(records, 3 * 192 + 5)
    out = np.empty((8, *store.shape), np.uint8)
    assert store.read(store.find(keys(8)), out).tolist() == [3, 4, 5, 6, 7]
    assert np.array_equal(out[:3], images(3))


def test_a_file_removed_while_in_use_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daptkit.data.store.catalog._OPEN_FILES", 0)
    lines: list[str] = []
    store = opened(tmp_path, lines)
    fill(store, 2)
    assert np.array_equal(read(store, keys(2)), images(2)), "files need not stay open"
    (records,) = tmp_path.rglob("*.bin")
    records.unlink()
    assert store.read(store.find(keys(2)), np.empty((2, *store.shape), np.uint8)).tolist() == [0, 1]
    assert len(lines) == 1 and "unreadable" in lines[0]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[70] ^= 1
    path.write_bytes(data)


def foreign(path: Path) -> None:
    """A whole index of another layout, whose checksum is right."""
    data = bytearray(path.read_bytes()[:-32])
    data[8] ^= 1
    path.write_bytes(data + hashlib.sha256(data).digest())


@pytest.mark.parametrize(
    ("end", "harm"),
    [(".idx", cut), (".idx", flip), (".idx", foreign), (".bin", cut), (".idx", Path.write_bytes)],
    ids=["cut", "flipped", "foreign", "records cut", "empty"],
)
def test_a_damaged_shard_is_passed_over_counted_and_removed(tmp_path, end, harm) -> None:
    fill(opened(tmp_path), 16)
    victim = sorted(tmp_path.rglob(f"*{end}"))[0]
    harm(victim) if harm is not Path.write_bytes else victim.write_bytes(b"")
    lines: list[str] = []
    store = opened(tmp_path, lines)
    assert (store.find(keys(16)) >= 0).sum() == 8
    store.find(keys(16))
    assert len(lines) == 1 and "passed over: 1" in lines[0]
    fill(store, 16)
    assert np.array_equal(read(store, keys(16)), images(16))
    store.close()
    later: list[str] = []
    assert np.array_equal(read(opened(tmp_path, later), keys(16)), images(16))
    assert later == [] and len(files(tmp_path)) == 4


def test_nothing_but_hashes_and_numbers_is_in_the_names(tmp_path: Path) -> None:
    fill(opened(tmp_path), 3)
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")}
    allowed = r"(\.lock)|[0-9a-f]{64}(/(\.lock|[0-9a-f]{32}\.(bin|idx)))?"
    assert len(names) == 5 and all(re.fullmatch(allowed, name) for name in names)
    assert all((tmp_path / name).stat().st_size == 0 for name in names if name.endswith(".lock"))


def test_a_folder_made_by_the_cache_is_private_and_a_given_one_is_left(tmp_path: Path) -> None:
    fill(opened(tmp_path / "made" / "decoded"), 1)
    assert (tmp_path / "made" / "decoded").stat().st_mode & 0o777 == 0o700
    (tmp_path / "given").mkdir()
    (tmp_path / "given").chmod(0o770)
    fill(opened(tmp_path / "given"), 1)
    assert (tmp_path / "given").stat().st_mode & 0o777 == 0o770


def test_memory_does_not_grow_with_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """120 MB are read, twice, in a process whose memory may grow by 12 MB."""
    monkeypatch.setattr(writer, "SHARD_RECORDS", 1024)
    shape, n = (3, 200, 200), 1000
    store = opened(tmp_path, shape=shape)
    image = images(1, shape=shape)[0]
    with store.writer() as adding:
        for key in keys(n):
            adding.add(key, image)
    assert len(list(tmp_path.rglob("*.bin"))) > 3

    def reading() -> None:
        fresh = opened(tmp_path, shape=shape)
        slots = fresh.find(keys(n))
        out = np.zeros((20, *shape), np.uint8)
        before = resident()
        for _ in range(2):
            for rows in np.random.default_rng(0).permutation(n).reshape(-1, 20):
                assert not len(fresh.read(slots[rows], out))
                assert np.array_equal(out[19], image)
        assert resident() - before < 12 * 2**20

    assert end_of(in_child(reading)) == 0


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
