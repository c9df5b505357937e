"""Equal and alike images: the hash, the search among many, and what is said of a group."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from check_images import class_folders, manifest, picture, save, scan_file, scan_readers
from daptkit.data import DecodedImage
from daptkit.data.check.look import NEAR, look_hash
from daptkit.data.check.pairs import alike_groups
from daptkit.data.decode import decode_bytes
from daptkit.recipes import checking
from daptkit.recipes.checking import check_data


def grey(pixels: np.ndarray, **others: Any) -> DecodedImage:
    top = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else np.inf
    return DecodedImage(array=pixels, **{"value_range": (0.0, float(top)), **others})


def hashes(images: list[DecodedImage]) -> np.ndarray:
    return np.stack([look_hash(image) for image in images])


def differing(one: DecodedImage, other: DecodedImage) -> int:
    first, second = hashes([one, other])
    return int(np.bitwise_count(first ^ second).sum())


def jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return Image.open(stream)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": jpeg,
    "brighter": lambda image: image.point(lambda level: round(level * 1.05)),
    "darker": lambda image: image.point(lambda level: round(level * 0.95)),
    "smaller": lambda image: image.resize((round(0.8 * image.width), round(0.8 * image.height))),
    "larger": lambda image: image.resize((round(1.5 * image.width), round(1.5 * image.height))),
    "colour": lambda image: image.convert("RGB"),
}


def names(group: dict[str, Any]) -> list[str]:
    return [image["name"] for image in group["images"]]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_look_alike_and_others_do_not(change: str) -> None:
    pictures = [Image.fromarray(picture(seed, 96)) for seed in range(20)]
    before = hashes([grey(np.asarray(image)) for image in pictures])
    after = hashes([grey(np.asarray(CHANGES[change](image))) for image in pictures])
    distances = np.bitwise_count(before[:, None] ^ after).sum(axis=-1, dtype=int)
    assert np.diag(distances).max() <= NEAR
    assert distances[~np.eye(20, dtype=bool)].min() > NEAR


def test_deep_and_inverted_twins_look_alike() -> None:
    pixels = picture(1, 96)
    deep = pixels.astype(np.uint16) * 37 + 900
    assert differing(grey(pixels), grey(deep)) <= NEAR
    assert differing(grey(pixels), grey(255 - pixels, photometric="MONOCHROME1")) <= NEAR
    assert differing(grey(pixels), grey(deep, display=True, value_range=(900.0, 10335.0))) <= NEAR
    assert differing(grey(pixels), grey(255 - pixels)) > NEAR
    outlier = deep.copy()
    outlier[::40, ::40] = 65535
    assert differing(grey(pixels), grey(outlier)) <= NEAR


def test_images_with_few_levels_have_a_hash() -> None:
    rare = np.zeros((64, 64), np.uint16)
    rare[:2, :2] = 900  # fewer than 1% of the pixels
    assert look_hash(grey(rare)).any()
    assert differing(grey(rare), grey(np.rot90(rare, 2).copy())) > NEAR


def loop_groups(hashed: np.ndarray, most: int) -> list[int]:
    """Number connected groups with plain loops; the number is the smallest member."""
    bits = np.unpackbits(hashed.view(np.uint8), axis=1)
    number = list(range(len(bits)))
    for i in range(len(bits)):
        for j in range(i):
            if int((bits[i] != bits[j]).sum()) <= most:
                old, new = max(number[i], number[j]), min(number[i], number[j])
                number = [new if n == old else n for n in number]
    return number


def flipped(start: np.ndarray, bits: int, seed: int) -> np.ndarray:
    chosen = np.random.default_rng(seed).permutation(256)[:bits]
    changed = np.unpackbits(start.view(np.uint8))
    changed[chosen] ^= 1
    return np.packbits(changed).view(np.uint64)


def test_groups_are_those_of_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, (40, 4)).astype(np.uint64)
    rows = [*base, base[3], base[3], flipped(base[3], 24, 0), flipped(base[3], 25, 1)]
    rows += [flipped(rows[-2], 24, 2), flipped(base[9], 12, 3), flipped(base[9], 12, 4)]
    hashed = np.stack(rows)
    wanted = loop_groups(hashed, 24)
    for block in (3, 64):
        monkeypatch.setattr("daptkit.data.check.pairs._ROWS", block)
        monkeypatch.setattr("daptkit.data.check.pairs._COLUMNS", block)
        found = alike_groups(hashed, 24, workers=2)
        same = found[:, None] == found
        assert np.array_equal(same, np.equal.outer(wanted, wanted))
    assert len(set(wanted)) == 41  # only the copy that is 25 bits away is no one's


def test_many_alike_hashes_keep_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daptkit.data.check.pairs._MANY", 10)
    monkeypatch.setattr("daptkit.data.check.pairs._ROWS", 8)
    start = np.random.default_rng(0).integers(0, 2**63, 4).astype(np.uint64)
    alike = np.stack([flipped(start, 8, seed) for seed in range(60)])
    found = alike_groups(np.concatenate([alike, ~alike[:20]]), 24, workers=1)
    assert len(set(found[:60])) == len(set(found[60:])) == 1 and found[0] != found[60]


def test_equal_pixels_in_any_format_are_equal(tmp_path: Path) -> None:
    class_folders(tmp_path, {"": range(5)})
    save(tmp_path / "copy.png", picture(1))
    save(tmp_path / "copy.bmp", picture(1))
    save(tmp_path / "alike.jpg", picture(2), quality=80)
    save(tmp_path / "tiny1.png", picture(1, 6))
    save(tmp_path / "tiny2.png", picture(1, 6))
    save(tmp_path / "tiny3.png", picture(2, 6))
    found = check_data(tmp_path)["duplicates"]
    assert [names(group) for group in found["exact"]] == [
        ["1.png", "copy.bmp", "copy.png"],
        ["tiny1.png", "tiny2.png"],
    ]
    assert [names(group) for group in found["near"]] == [["2.png", "alike.jpg"]]


def test_equal_images_need_every_pixel_equal(tmp_path: Path) -> None:
    large = np.kron(picture(5, 64), np.ones((8, 8), np.uint8))
    other = large.copy()
    other[0, 1] ^= 1
    save(tmp_path / "a.png", large)
    save(tmp_path / "b.png", other)
    found = check_data(tmp_path)["duplicates"]
    assert not found["exact"] and [names(group) for group in found["near"]] == [["a.png", "b.png"]]


def test_constant_images_are_no_duplicates(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png", np.zeros((32, 32), np.uint8))
    found = check_data(tmp_path)["duplicates"]
    assert not found["exact"] and not found["near"]


def test_frames_of_one_file_are_no_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "plugin_readers", lambda log, options: scan_readers())
    monkeypatch.setattr("check_images.picture", lambda seed: picture(0))
    scan_file(tmp_path / "loop.scan", 0, frames=3)
    assert not check_data(tmp_path, frames="all")["duplicates"]["exact"]
    scan_file(tmp_path / "other.scan", 0, frames=3)
    (group,) = check_data(tmp_path, frames="all")["duplicates"]["exact"]
    assert len(group["images"]) == 6


def test_a_group_says_what_it_spoils(tmp_path: Path) -> None:
    columns = ("path", "label", "split", "patient_id")
    cells = [(f"{n}.png", "ab"[n % 2], "train" if n < 30 else "test", f"p{n}") for n in range(40)]
    listed = [dict(zip(columns, row, strict=True)) for row in cells]
    listed[4]["patient_id"] = "p2"
    listed[13]["patient_id"] = listed[11]["patient_id"] = ""
    for first, second in ((0, 31), (2, 4), (6, 9), (11, 13)):
        for row in (first, second):
            save(tmp_path / f"{row}.png", picture(first))
    for number in range(2):
        save(tmp_path / "t" / f"{number}.png", picture(20 * number))
    save(tmp_path / "20.png", picture(20))
    found = check_data(manifest(tmp_path / "m.csv", listed), target=tmp_path / "t")
    flags = {
        tuple(names(group)): [key for key, value in group.items() if value is True]
        for group in found["duplicates"]["exact"]
    }
    assert flags == {
        ("0.png", "31.png", "0.png"): ["across_domains", "across_splits", "conflicting_labels"],
        ("2.png", "4.png"): ["one_patient"],
        ("6.png", "9.png"): ["conflicting_labels"],
        ("11.png", "13.png"): [],
        ("20.png", "1.png"): ["across_domains"],
    }
    said = {p["code"]: p["message"] for p in found["problems"] if "duplicates" in p["code"]}
    assert set(said) == {
        "duplicates_across_splits",
        "duplicates_across_domains",
        "duplicates_conflicting_labels",
        "duplicates_across_patients",
    }
    assert said["duplicates_across_splits"].startswith("1 group of equal images in several splits")
    assert said["duplicates_across_domains"].startswith("2 groups of equal images in both domains")
    assert said["duplicates_across_patients"].startswith("2 groups")
    assert found["ok"]


def test_chest_x_rays_of_two_patients_do_not_look_alike(shared_data: Path) -> None:
    folder = shared_data / "data" / "pneumonia_cxr" / "nih_adult" / "normal"
    files = sorted(folder.glob("*.png"))
    first = {path.name.partition("_")[0]: path for path in files[:240]}
    images = [decode_bytes(path.read_bytes()) for path in first.values()]
    hashed = hashes(images)
    distances = np.bitwise_count(hashed[:, None] ^ hashed).sum(axis=-1, dtype=int)
    assert len(images) > 100
    assert distances[~np.eye(len(images), dtype=bool)].min() > NEAR
    changed = hashes([decode_bytes(_changed(path)) for path in list(first.values())[:30]])
    assert np.bitwise_count(changed ^ hashed[:30]).sum(axis=-1).max() <= NEAR


def _changed(path: Path) -> bytes:
    image = Image.open(path).convert("L")
    smaller = image.resize((round(image.width * 0.9), round(image.height * 0.9)))
    stream = io.BytesIO()
    smaller.point(lambda level: round(level * 0.95)).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def test_result_is_plain_json(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": [1, 2], "b": [3, 1]})
    json.dumps(check_data(tmp_path), allow_nan=False)
