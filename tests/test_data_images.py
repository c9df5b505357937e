"""Conversion to model input, and sets of decoded images."""

from __future__ import annotations

import json
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
    fit_conversion,
    to_float,
)
from daptkit.data.convert import convert_image, convert_rows
from daptkit.data.refs import ArrayRef, FileRef
from daptkit.errors import DataError

RNG = np.random.default_rng(1)


def decoded(array: np.ndarray, photometric: str = "MONOCHROME2") -> DecodedImage:
    return DecodedImage(array=array, value_range=(0.0, 255.0), photometric=photometric)


def array_table(array: np.ndarray) -> ImageTable:
    refs = tuple(ArrayRef(array, row) for row in range(len(array)))
    names = tuple(f"train/{row}" for row in range(len(array)))
    return ImageTable(domain="source", names=names, refs=refs, splits=("train",) * len(names))


def file_table(folder: Path, arrays: list[np.ndarray]) -> ImageTable:
    for row, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{row}.png")
    return ImageTable(
        domain="target",
        names=tuple(f"{row}.png" for row in range(len(arrays))),
        refs=tuple(FileRef(folder / f"{row}.png") for row in range(len(arrays))),
        splits=("",) * len(arrays),
    )


def noise(n: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *shape)).astype(np.uint8)


def test_right_size_is_a_copy() -> None:
    images = noise(3, 8, 8)
    conversion = Conversion(img_size=8, in_chans=3)
    out = convert_rows(images, conversion)
    assert out.shape == (3, 3, 8, 8) and out.dtype == np.uint8
    assert all(np.array_equal(out[:, channel], images) for channel in range(3))


def test_channels() -> None:
    colour = noise(1, 8, 8, 3)[0]
    assert np.array_equal(
        convert_image(decoded(colour), Conversion(img_size=8, in_chans=3)),
        colour.transpose(2, 0, 1),
    )
    grey = convert_image(decoded(colour), Conversion(img_size=8, in_chans=1))[0].astype(float)
    for y in range(8):
        for x in range(8):
            r, g, b = (float(value) for value in colour[y, x])
            assert abs(grey[y, x] - (0.299 * r + 0.587 * g + 0.114 * b)) <= 1.0
    with pytest.raises(DataError, match="3 channels do not fit a model of 4"):
        convert_image(decoded(colour), Conversion(img_size=8, in_chans=4))


def test_downsampling_is_antialiased() -> None:
    """Halving by a triangle of two pixels' half-width weighs four neighbours 1, 3, 3, 1."""
    column = RNG.uniform(0, 255, 16).astype(np.float32)
    image = np.repeat(column[:, None], 16, axis=1)
    conversion = Conversion(img_size=8, in_chans=1, windows={"float": (0.0, 255.0)})
    out = convert_image(decoded(image), conversion)[0]
    for row in range(1, 7):
        first = 2 * row - 1
        taps = [1 / 8 * column[first], 3 / 8 * column[first + 1]]
        taps += [3 / 8 * column[first + 2], 1 / 8 * column[first + 3]]
        assert out[row, 4] == pytest.approx(sum(map(float, taps)) / 255, abs=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (1, 1), (9, 31), (40, 12)])
def test_any_shape_becomes_square_without_overshoot(shape: tuple[int, int]) -> None:
    flat = np.full(shape, 77, np.uint8)
    assert (convert_image(decoded(flat), Conversion(img_size=28, in_chans=1)) == 77).all()
    image = noise(1, *shape)[0]
    out = convert_image(decoded(image), Conversion(img_size=28, in_chans=1))
    assert out.shape == (1, 28, 28) and image.min() <= out.min() <= out.max() <= image.max()


def test_files_and_arrays_convert_alike(tmp_path: Path) -> None:
    images = noise(5, 16, 16)
    conversion = Conversion(img_size=28, in_chans=1)
    from_files = ImageSet(file_table(tmp_path, list(images)), conversion)
    from_arrays = ImageSet(array_table(images), conversion)
    assert torch.equal(from_files.batch(range(5)), from_arrays.batch(range(5)))


def test_window_is_fitted_on_the_source() -> None:
    source = RNG.normal(3000, 300, (20, 32, 32)).clip(0, 65535).astype(np.uint16)
    target = RNG.normal(9000, 300, (20, 32, 32)).astype(np.uint16)
    conversion = fit_conversion([array_table(source), array_table(target)], img_size=32, in_chans=1)
    low, high = conversion.windows["int"]
    assert (low, high) == pytest.approx(tuple(np.percentile(source, [0.5, 99.5])))
    out = ImageSet(array_table(source), conversion).batch(range(20))
    assert out.dtype == torch.float32 and 0 <= out.min() < 0.01 and 0.99 < out.max() <= 1
    assert len(out.unique()) > 250
    expected = ((source[7].astype(float) - low) / (high - low)).clip(0, 1)
    assert np.allclose(out[7, 0].numpy(), expected, atol=1e-6)
    assert ImageSet(array_table(target), conversion).batch([0]).min() == 1.0


def test_target_decides_the_window_where_the_source_is_eight_bit() -> None:
    target = RNG.integers(0, 4096, (4, 8, 8)).astype(np.uint16)
    tables = [array_table(noise(4, 8, 8)), array_table(target)]
    conversion = fit_conversion(tables, img_size=8, in_chans=1)
    assert set(conversion.windows) == {"int"}
    shallow = ImageSet(tables[0], conversion)
    assert shallow.batch([0]).dtype == torch.float32
    refs = tables[0].refs[0]
    assert isinstance(refs, ArrayRef)
    assert torch.allclose(shallow.batch([0])[0, 0], torch.from_numpy(refs.array[0] / 255).float())


def test_inverted_images_equal_their_twin() -> None:
    image = RNG.integers(0, 4096, (8, 8)).astype(np.uint16)
    conversion = Conversion(img_size=6, in_chans=1, windows={"int": (0.0, 4095.0)})
    twin = convert_image(decoded(4095 - image, "MONOCHROME1"), conversion)
    assert np.allclose(twin, convert_image(decoded(image), conversion), atol=1e-6)
    shallow = Conversion(img_size=8, in_chans=1)
    assert np.array_equal(
        convert_image(decoded(255 - noise_image(), "MONOCHROME1"), shallow)[0], noise_image()
    )


def noise_image() -> np.ndarray:
    return np.arange(64, dtype=np.uint8).reshape(8, 8)


def test_depths_without_window(tmp_path: Path) -> None:
    flat = np.full((3, 8, 8), 700, np.uint16)
    with pytest.raises(DataError, match="flat"):
        fit_conversion([array_table(flat)], img_size=8, in_chans=1)
    with pytest.raises(DataError, match=r"(?s)3 unreadable .*'train/0': uint16 .*8-bit") as caught:
        ImageSet(array_table(flat), Conversion(img_size=8, in_chans=1))
    assert caught.value.exit_code == 3
    floats = array_table(RNG.normal(size=(3, 8, 8)))
    with pytest.raises(DataError, match="float64 pixels, for which"):
        ImageSet(floats, Conversion(img_size=8, in_chans=1, windows={"int": (0.0, 1.0)}))


def test_conversion_survives_json_bit_for_bit() -> None:
    images = RNG.normal(size=(6, 11, 13))
    conversion = fit_conversion([array_table(images)], img_size=9, in_chans=3)
    again = Conversion.from_json(json.loads(json.dumps(conversion.to_json())))
    assert again == conversion
    first = ImageSet(array_table(images), conversion).batch(range(6))
    assert torch.equal(first, ImageSet(array_table(images), again).batch(range(6)))
    with pytest.raises(DataError, match="version 99"):
        Conversion.from_json(conversion.to_json() | {"version": 99})
    with pytest.raises(DataError, match="malformed"):
        Conversion.from_json({"version": 1, "img_size": 9})


@pytest.mark.parametrize("memory_limit", [2**30, 0])
def test_unreadable_images_are_named_or_dropped(tmp_path: Path, memory_limit: int) -> None:
    images = noise(6, 8, 8)
    table = file_table(tmp_path, list(images))
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "4.png").write_bytes(b"text")
    conversion = Conversion(img_size=8, in_chans=1)
    with pytest.raises(DataError) as caught:
        ImageSet(table, conversion, skip_unreadable=1, memory_limit=memory_limit)
    for part in (
        "2 unreadable",
        "'1.png': empty file",
        "'4.png': not a readable",
        "--skip-unreadable",
    ):
        assert part in str(caught.value)
    kept = ImageSet(table, conversion, skip_unreadable=2, memory_limit=memory_limit)
    assert kept.in_memory == bool(memory_limit)
    assert [name for name, _ in kept.skipped] == ["1.png", "4.png"]
    assert kept.table.names == ("0.png", "2.png", "3.png", "5.png") and len(kept) == 4
    assert np.array_equal(kept.batch(range(4))[:, 0].numpy(), images[[0, 2, 3, 5]])


def test_all_unreadable_or_none(tmp_path: Path) -> None:
    table = file_table(tmp_path, [noise_image()])
    (tmp_path / "0.png").write_bytes(b"")
    conversion = Conversion(img_size=8, in_chans=1)
    with pytest.raises(DataError, match="every image"):
        ImageSet(table, conversion, skip_unreadable=5)
    with pytest.raises(DataError, match="no images"):
        ImageSet(table.select([]), conversion)


def test_nan_rows_of_arrays_are_unreadable() -> None:
    images = RNG.uniform(size=(5, 8, 8))
    images[3, 2, 2] = np.nan
    conversion = fit_conversion([array_table(images)], img_size=8, in_chans=1)
    kept = ImageSet(array_table(images), conversion, skip_unreadable=1)
    assert kept.skipped == [("train/3", "pixels are NaN or infinite")]


def test_on_demand_equals_in_memory(tmp_path: Path) -> None:
    table = file_table(tmp_path, list(noise(23, 12, 10)))
    conversion = Conversion(img_size=8, in_chans=3)
    memory = ImageSet(table, conversion)
    demand = ImageSet(table, conversion, workers=3, memory_limit=0)
    batches = [RNG.integers(0, 23, 7) for _ in range(12)]
    assert not demand.in_memory
    for first, second, rows in zip(
        memory.prefetch(batches), demand.prefetch(iter(batches)), batches, strict=True
    ):
        assert first.shape == (7, 3, 8, 8) and torch.equal(first, second)
        assert torch.equal(first, demand.batch(rows))


def test_prefetch_is_lazy_and_can_be_left(tmp_path: Path) -> None:
    demand = ImageSet(
        file_table(tmp_path, list(noise(4, 8, 8))),
        Conversion(img_size=8, in_chans=1),
        memory_limit=0,
    )
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield np.array([drawn % 4])

    stream = demand.prefetch(endless())
    next(stream)
    assert 1 <= drawn <= 8
    stream.close()


def test_image_that_vanishes_is_named(tmp_path: Path) -> None:
    demand = ImageSet(
        file_table(tmp_path, list(noise(2, 8, 8))),
        Conversion(img_size=8, in_chans=1),
        memory_limit=0,
    )
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"'1.png' is no longer readable"):
        demand.batch([1])


def test_mixed_arrays_and_order(tmp_path: Path) -> None:
    images = noise(6, 8, 8)
    table = array_table(images).select([4, 0, 5, 1])
    out = ImageSet(table, Conversion(img_size=8, in_chans=1)).batch([0, 1, 2, 3])
    assert np.array_equal(out[:, 0].numpy(), images[[4, 0, 5, 1]])


def test_to_float() -> None:
    raw = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.equal(to_float(raw), torch.tensor([0.0, 0.2, 1.0]))
    floats = torch.rand(3)
    assert to_float(floats) is floats


def test_readers_are_used(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(range(64)))

    def read(path: Path, frame: int | None) -> DecodedImage:
        return decoded(np.frombuffer(path.read_bytes(), np.uint8).reshape(8, 8))

    table = ImageTable(
        domain="source", names=("a.raw",), refs=(FileRef(tmp_path / "a.raw"),), splits=("",)
    )
    out = ImageSet(
        table,
        Conversion(img_size=8, in_chans=1),
        readers=Readers([Format(name="raw", extensions=(".raw",), read=read)]),
    ).batch([0])
    assert out.flatten().tolist() == list(range(64))
