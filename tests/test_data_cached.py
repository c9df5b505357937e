"""Image sets over the cache of decoded images, and runs that share it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import daptkit
from daptkit.cli.main import run
from daptkit.data import (
    Conversion,
    DecodeCache,
    DecodedImage,
    Format,
    ImageSet,
    ImageTable,
    Readers,
    choose_frames,
    decoding,
    read_table,
)
from daptkit.data.readers import NO_READERS
from daptkit.errors import DataError
from fakes import CLASSES, EDGE, drawn, tiny_config

CONVERSION = Conversion(img_size=8, in_chans=1)
Decodes = Callable[[], int]


def listed(folder: Path) -> ImageTable:
    return read_table(folder, domain="source", labelled=False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for row, pixels in enumerate(drawn(12, 3)[0]):
        Image.fromarray(pixels).save(folder / f"{row:02d}.png")
    return folder


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Decodes:
    """How many images have been decoded so far."""
    count = [0]
    original = decoding.decode_ref

    def counted(*arguments):
        count[0] += 1
        return original(*arguments)

    monkeypatch.setattr(decoding, "decode_ref", counted)
    return lambda: count[0]


def test_a_second_set_decodes_nothing(tmp_path: Path, images: Path, decodes: Decodes) -> None:
    plain = ImageSet(listed(images), CONVERSION).batch(range(12))
    before = decodes()
    first = ImageSet(listed(images), CONVERSION, cache=DecodeCache(tmp_path / "c"))
    assert (decodes() - before, first.decoded, first.in_memory) == (12, 12, False)
    second = ImageSet(listed(images), CONVERSION, cache=DecodeCache(tmp_path / "c"))
    rows = [3, 3, 11, 0]
    assert torch.equal(first.batch(range(12)), plain)
    assert torch.equal(second.batch(rows), plain[rows])
    assert torch.equal(
        torch.cat(list(second.prefetch([np.array([1]), np.array([7])]))), plain[[1, 7]]
    )
    assert (decodes() - before, second.decoded) == (12, 0)


def test_a_moved_folder_is_found_and_a_changed_file_is_noticed(
    tmp_path: Path, images: Path, decodes: Decodes
) -> None:
    cache = DecodeCache(tmp_path / "c")
    ImageSet(listed(images), CONVERSION, cache=cache)
    moved = images.rename(tmp_path / "moved")
    before = decodes()
    ImageSet(listed(moved), CONVERSION, cache=cache)
    assert decodes() == before
    path = moved / "05.png"
    stat = path.stat()
    Image.fromarray(np.full((EDGE, EDGE), 77, np.uint8)).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the clock does not tell
    changed = ImageSet(listed(moved), CONVERSION, cache=cache)
    assert changed.decoded == 1
    assert set(changed.batch([5]).flatten().tolist()) == {77}


def test_conversions_and_frames_are_kept_apart(tmp_path: Path, images: Path) -> None:
    cache = DecodeCache(tmp_path / "c")
    ImageSet(listed(images), CONVERSION, cache=cache)
    other = Conversion(img_size=4, in_chans=3)
    assert ImageSet(listed(images), other, cache=cache).batch([0]).shape == (1, 3, 4, 4)
    pages = [Image.new("L", (8, 8), value) for value in (10, 20)]
    stack = tmp_path / "stack"
    stack.mkdir()
    pages[0].save(stack / "s.tif", save_all=True, append_images=pages[1:])
    table = choose_frames(listed(stack), "all", NO_READERS)
    for _ in range(2):
        both = ImageSet(table, CONVERSION, cache=cache).batch([0, 1])
        assert both[:, 0, 0, 0].tolist() == [10, 20]


def test_another_version_or_option_of_a_reader_reads_anew(tmp_path: Path) -> None:
    """Also of a format that the model was not trained on, which its conversion does not name."""
    (tmp_path / "a.raw").write_bytes(b"the same bytes")

    def shown(value: int, **made: Any) -> int:
        def read(path: Path, frame: int | None) -> DecodedImage:
            return DecodedImage(array=np.full((4, 4), value, np.uint8), value_range=(0.0, 255.0))

        readers = Readers([Format(name="raw", extensions=(".raw",), read=read, **made)])
        table = read_table(tmp_path / "a.raw.csv", domain="target", labelled=False)
        cache = DecodeCache(tmp_path / "c")
        images = ImageSet(table, CONVERSION, readers=readers, cache=cache)
        return int(images.batch([0])[0, 0, 0, 0])

    (tmp_path / "a.raw.csv").write_text("path\na.raw\n")
    assert shown(1, origin="x 1.0") == 1
    assert shown(2, origin="x 1.0") == 1
    assert shown(3, origin="x 1.1") == 3
    assert shown(4, origin="x 1.1", options={"level": 2}) == 4


def test_unreadable_images_are_told_each_time(tmp_path: Path, images: Path) -> None:
    (images / "04.png").write_text("rubbish")
    cache = DecodeCache(tmp_path / "c")
    for _ in range(2):
        with pytest.raises(DataError, match=r"(?s)1 unreadable image .*'04.png': not a readable"):
            ImageSet(listed(images), CONVERSION, cache=cache)
        tolerant = ImageSet(listed(images), CONVERSION, cache=cache, skip_unreadable=1)
        assert len(tolerant) == 11 and [name for name, _ in tolerant.skipped] == ["04.png"]
        plain = ImageSet(listed(images), CONVERSION, skip_unreadable=1)
        assert torch.equal(tolerant.batch(range(11)), plain.batch(range(11)))


def test_damaged_records_are_decoded_again(tmp_path: Path, images: Path, decodes: Decodes) -> None:
    ImageSet(listed(images), CONVERSION, cache=DecodeCache(tmp_path / "c"))
    plain = ImageSet(listed(images), CONVERSION).batch(range(12))
    (records,) = (tmp_path / "c").rglob("*.bin")
    content = bytearray(records.read_bytes())
    content[100] ^= 1
    records.write_bytes(content)
    lines: list[str] = []
    again = ImageSet(
        listed(images), CONVERSION, cache=DecodeCache(tmp_path / "c", log=lines.append)
    )
    before = decodes()
    assert torch.equal(again.batch(range(12)), plain)
    assert decodes() - before == 1 and "damaged" in lines[0]


def test_a_full_cache_costs_time_and_nothing_else(tmp_path: Path, images: Path) -> None:
    lines: list[str] = []
    small = DecodeCache(tmp_path / "c", limit=0, log=lines.append)
    kept = ImageSet(listed(images), CONVERSION, cache=small)
    assert torch.equal(kept.batch(range(12)), ImageSet(listed(images), CONVERSION).batch(range(12)))
    assert len(lines) == 1 and "DAPTKIT_CACHE_LIMIT" in lines[0]


def sites(folder: Path) -> tuple[Path, Path]:
    made = []
    for name, seed in (("source", 1), ("target", 2)):
        for row, (pixels, label) in enumerate(zip(*drawn(60, seed), strict=True)):
            path = folder / name / CLASSES[label] / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        made.append(folder / name)
    return made[0], made[1]


def test_runs_share_what_is_decoded_and_agree_with_a_run_without(
    tmp_path: Path, decodes: Decodes, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = sites(tmp_path)
    cache = tmp_path / "decoded"

    def adapted(name: str, cached: str) -> bytes:
        out = tmp_path / name
        config = tiny_config(
            tmp_path, source=(str(source),), target=str(target), in_chans=1, out=str(out)
        )
        daptkit.adapt(**{**vars(config), "cache": cached, "method_options": {}})
        return (out / "predictions.csv").read_bytes()

    first = adapted("a", str(cache))
    before = decodes()
    assert adapted("b", str(cache)) == first
    assert decodes() == before
    csv = tmp_path / "p.csv"
    arguments = ["--images", str(target), "--out", str(csv), "--cache", str(cache)]
    assert run(["predict", str(tmp_path / "a"), *arguments]) == 0
    assert decodes() == before
    assert csv.read_bytes() == first
    assert adapted("c", "off") == first
    assert decodes() > before
    listing = b"".join(path.read_bytes() for path in cache.rglob("*") if path.is_file())
    assert b".png" not in listing and str(tmp_path).encode() not in listing
    shutil.rmtree(cache)
    assert adapted("d", str(cache)) == first
    capsys.readouterr()
    assert run(["data", "cache", "--info", "--cache", str(cache), "--json"]) == 0
    assert '"images": 120' in capsys.readouterr().out
