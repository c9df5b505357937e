"""Which frames of files with several a run uses, and images that say what to show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from daptkit.data import (
    Conversion,
    DecodedImage,
    Format,
    ImageSet,
    ImageTable,
    Readers,
    choose_frames,
    fit_conversion,
    parse_frames,
    parse_window,
    read_table,
)
from daptkit.data.convert import convert_image, depth_kind
from daptkit.data.decode import count_frames
from daptkit.data.refs import FileRef
from daptkit.errors import DataError, UsageError

EIGHT = Conversion(img_size=4, in_chans=1)


def stack(path: Path, values: list[int]) -> None:
    pages = [Image.new("L", (4, 4), value) for value in values]
    pages[0].save(path, save_all=True, append_images=pages[1:])


@pytest.fixture
def volumes(tmp_path: Path) -> ImageTable:
    """A stack of three pages, one of one page, and a PNG."""
    stack(tmp_path / "a.tif", [10, 20, 30])
    stack(tmp_path / "b.tif", [40])
    Image.new("L", (4, 4), 50).save(tmp_path / "c.png")
    return read_table(tmp_path, domain="target", labelled=False)


@pytest.mark.parametrize(
    ("policy", "names", "levels"),
    [
        ("first", ["a.tif", "b.tif", "c.png"], [10, 40, 50]),
        ("middle", ["a.tif", "b.tif", "c.png"], [20, 40, 50]),
        ("2", ["a.tif", "b.tif", "c.png"], [30, 40, 50]),
        ("all", ["a.tif#0", "a.tif#1", "a.tif#2", "b.tif", "c.png"], [10, 20, 30, 40, 50]),
    ],
)
def test_policies(volumes: ImageTable, policy: str, names: list[str], levels: list[int]) -> None:
    table = choose_frames(volumes, parse_frames(policy), Readers())
    assert list(table.names) == names
    images = ImageSet(table, EIGHT).batch(range(len(table)))
    assert images[:, 0, 0, 0].tolist() == levels


def test_frames_of_one_file_stay_together(volumes: ImageTable) -> None:
    table = choose_frames(volumes, "all", Readers())
    assert table.groups().tolist() == [0, 0, 0, 1, 2]


def test_without_policy_a_stack_is_refused(volumes: ImageTable) -> None:
    assert choose_frames(volumes, None, Readers()) is volumes
    with pytest.raises(DataError, match=r"'a.tif': 3 frames; give --frames"):
        ImageSet(volumes, EIGHT)


def test_a_frame_that_is_not_there(volumes: ImageTable) -> None:
    with pytest.raises(DataError, match=r"'a.tif': no frame 7; the file has 3"):
        ImageSet(choose_frames(volumes, "7", Readers()), EIGHT)


def test_unreadable_files_are_left_to_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0rubbish")
    table = read_table(tmp_path, domain="target", labelled=False)
    assert choose_frames(table, "all", Readers()).refs == table.refs


def test_a_manifest_keeps_the_frames_it_names(tmp_path: Path) -> None:
    stack(tmp_path / "a.tif", [1, 2, 3])
    (tmp_path / "m.csv").write_text("path,frame\na.tif,2\n")
    table = read_table(tmp_path / "m.csv", domain="target", labelled=False)
    assert choose_frames(table, "first", Readers()).refs == (FileRef(tmp_path / "a.tif", 2),)


def test_plugins_count_their_frames(tmp_path: Path) -> None:
    (tmp_path / "v.vol").write_bytes(b"5")

    def read(path: Path, frame: int | None) -> DecodedImage:
        return DecodedImage(array=np.full((4, 4), frame or 0, np.uint8), value_range=(0.0, 255.0))

    counting = Format(
        name="vol", extensions=(".vol",), read=read, count=lambda p: int(p.read_text())
    )
    readers = Readers([counting])
    assert count_frames(tmp_path / "v.vol", readers) == 5
    table = read_table(tmp_path, domain="target", labelled=False, readers=readers)
    assert len(choose_frames(table, "all", readers)) == 5
    silent = Readers([Format(name="vol", extensions=(".vol",), read=read)])
    assert len(choose_frames(table, "all", silent)) == 1


@pytest.mark.parametrize("text", ["", "last", "-1", "1.5", "al"])
def test_wrong_policies(text: str) -> None:
    with pytest.raises(UsageError, match="--frames is first, middle, all or a number"):
        parse_frames(text)


@pytest.mark.parametrize("text", ["", "5", "a:b", "4:4", "9:1", "nan:1", "0:inf"])
def test_wrong_windows(text: str) -> None:
    with pytest.raises(UsageError, match="--window takes LOW:HIGH"):
        parse_window(text)


def shown(array: np.ndarray, *, photometric: str = "MONOCHROME2") -> DecodedImage:
    return DecodedImage(
        array=array, value_range=(0.0, 4080.0), photometric=photometric, display=True
    )


def test_an_image_that_says_what_to_show_equals_its_8_bit_twin() -> None:
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    twin = DecodedImage(array=eight, value_range=(0.0, 255.0))
    conversion = Conversion(img_size=8, in_chans=1)
    expected = convert_image(twin, conversion)
    deep = eight.astype(np.int16) * 16
    assert depth_kind(shown(deep)) is None
    assert np.array_equal(convert_image(shown(deep), conversion), expected)
    inverted = shown(4080 - deep, photometric="MONOCHROME1")
    assert np.array_equal(convert_image(inverted, conversion), expected)
    beyond = shown(np.where(deep == 4080, 6000, deep))
    assert np.array_equal(convert_image(beyond, conversion), expected)


def test_more_than_8_bits_of_shown_levels_are_kept(tmp_path: Path) -> None:
    ramp = np.arange(4096, dtype=np.int16).reshape(64, 64)
    assert depth_kind(shown(ramp)) == "display"
    (tmp_path / "a.raw").write_bytes(b"x")
    raw = Format(name="raw", extensions=(".raw",), read=lambda path, frame: shown(ramp))
    readers = Readers([raw])
    table = read_table(tmp_path, domain="source", labelled=False, readers=readers)
    conversion = fit_conversion([table], img_size=64, in_chans=1, readers=readers, frames="first")
    assert conversion.windows == {"display": (0.0, 1.0)}
    assert Conversion.from_json(conversion.to_json()) == conversion
    assert conversion.readers == {"raw": {"package": "", "options": {}}}
    image = ImageSet(table, conversion, readers=readers).batch([0])
    assert image.dtype == torch.float32 and len(image.unique()) > 4000
    # Beside deep images an 8-bit one still spans 0 to 255.
    eight = DecodedImage(array=np.full((64, 64), 51, np.uint8), value_range=(0.0, 255.0))
    assert convert_image(eight, conversion)[0, 0, 0] == pytest.approx(0.2)


def test_a_fixed_window(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1000], [2000, 3000]], np.uint16)).save(tmp_path / "a.png")
    table = read_table(tmp_path, domain="source", labelled=False)
    conversion = fit_conversion([table], img_size=2, in_chans=1, fixed=parse_window("1000:2000"))
    images = ImageSet(table, conversion).batch([0])
    assert images.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]


def test_conversions_of_the_first_version_are_read() -> None:
    old = {"version": 1, "img_size": 8, "in_chans": 1, "windows": {"int": [0, 9]}}
    assert Conversion.from_json(old).windows == {"int": (0.0, 9.0)}
    assert Conversion.from_json(old).frames is None
