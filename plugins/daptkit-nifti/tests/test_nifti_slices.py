"""Slices against nibabel's own reorientation, and against where the anatomy is."""

from __future__ import annotations

import gzip
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from daptkit.data import ImageSet, ImageTable, Readers, choose_frames, fit_conversion, read_table
from daptkit.errors import DataError
from daptkit.train.plugins import plugin_readers
from daptkit_nifti import packed
from daptkit_nifti.plugin import NiftiOptions
from daptkit_nifti.reader import count_slices, read_slice

RNG = np.random.default_rng(0)
SHAPE = (4, 5, 3)
SLICES = {"sagittal": 4, "coronal": 5, "axial": 3}
ORIENTATIONS = [
    np.array(list(zip(order, ways, strict=True)), dtype=float)
    for order in itertools.permutations(range(3))
    for ways in itertools.product((1, -1), repeat=3)
]


def canonical() -> np.ndarray:
    """Voxels whose axes run to the patient's right, anterior and superior."""
    return np.arange(60, dtype=np.int16).reshape(SHAPE)


def save(path: Path, voxels: np.ndarray, affine: Any = None, **header: Any) -> Path:
    """Write a file with these stored voxels; ``header`` sets fields, RAS where no affine is."""
    image = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def stored_as(orientation: np.ndarray, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return voxels and affine of the same anatomy in another order of storage."""
    moved = apply_orientation(voxels, orientation)
    return moved, inv_ornt_aff(orientation, voxels.shape)


def expected(axis: str, frame: int) -> np.ndarray:
    """The slice by plain loops over where each pixel is in the patient."""
    volume = canonical()
    x, y, z = SHAPE
    if axis == "axial":  # from anterior down, from the patient's right on
        return np.array([[volume[x - 1 - c, y - 1 - r, frame] for c in range(x)] for r in range(y)])
    if axis == "coronal":
        return np.array([[volume[x - 1 - c, frame, z - 1 - r] for c in range(x)] for r in range(z)])
    return np.array([[volume[frame, y - 1 - c, z - 1 - r] for c in range(y)] for r in range(z)])


@pytest.mark.parametrize("axis", SLICES)
def test_the_same_anatomy_is_the_same_slice_in_all_48_orders(tmp_path: Path, axis: str) -> None:
    options = NiftiOptions(axis=axis)
    assert len(ORIENTATIONS) == 48
    for orientation in ORIENTATIONS:
        path = save(tmp_path / "a.nii", *stored_as(orientation, canonical()))
        back = nibabel.as_closest_canonical(nibabel.load(path))
        assert np.array_equal(np.asarray(back.dataobj), canonical())
        assert count_slices(path, options) == SLICES[axis]
        for frame in range(SLICES[axis]):
            image = read_slice(path, frame, options)
            assert np.array_equal(image.array, expected(axis, frame))
            assert image.frames == SLICES[axis] and not image.display


@pytest.mark.parametrize(
    ("axis", "corner"), [("axial", (0, -1)), ("coronal", (0, -1)), ("sagittal", (0, 0))]
)
def test_a_lesion_is_where_a_radiologist_looks(
    tmp_path: Path, axis: str, corner: tuple[int, int]
) -> None:
    """Left, anterior, superior: top right, and on sagittal slices top left."""
    voxels = np.zeros((6, 6, 6), np.int16)
    to_left, to_back, up = np.diag([-2.0, -1.0, 3.0]).T  # stored LPS
    affine = np.eye(4)
    affine[:3, :3] = np.stack([to_left, to_back, up], axis=1)
    voxels[5, 0, 5] = 100
    frame = {"axial": 5, "coronal": 5, "sagittal": 0}[axis]
    image = read_slice(save(tmp_path / "a.nii", voxels, affine), frame, NiftiOptions(axis=axis))
    assert image.array[corner] == 100 and image.array.sum() == 100


def test_oblique_volumes_are_cut_along_the_closest_axis(tmp_path: Path) -> None:
    angle = np.radians(25)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    moved, affine = stored_as(ORIENTATIONS[13], canonical())
    path = save(tmp_path / "a.nii", moved, turn @ affine)
    assert np.array_equal(read_slice(path, 1, NiftiOptions()).array, expected("axial", 1))


def test_qform_alone_orients(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(canonical()[::-1], None)
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    image.set_sform(np.eye(4), code=0)
    image.set_qform(affine, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    array = read_slice(tmp_path / "a.nii", 0, NiftiOptions()).array
    assert np.array_equal(array, expected("axial", 0))


def test_a_file_without_orientation_needs_a_word(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(canonical(), None), path)
    message = r"which side is left .*--reader-options nifti.unoriented=assume"
    with pytest.raises(DataError, match=message):
        read_slice(path, 0, NiftiOptions())
    with pytest.raises(DataError, match=message):
        count_slices(path, NiftiOptions())
    assumed = read_slice(path, 0, NiftiOptions(unoriented="assume")).array
    # The first axis runs to the left, so that it is read from the patient's right as stored.
    assert np.array_equal(assumed, canonical()[:, ::-1, 0].T)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_ramp_keeps_every_level(tmp_path: Path, name: str, kind: Any) -> None:
    ramp = np.arange(-32768, 32768, dtype=np.int16).reshape(256, 128, 2)
    for order in "<>":
        header = kind.header_class(endianness=order)
        header.set_data_dtype(np.int16)
        nibabel.save(kind(ramp, np.eye(4), header), tmp_path / name)
        levels = [read_slice(tmp_path / name, frame, NiftiOptions()) for frame in (0, 1)]
        assert all(image.array.dtype == np.dtype("=i2") for image in levels)
        assert all(image.value_range == (-32768.0, 32767.0) for image in levels)
        both = np.concatenate([image.array.ravel() for image in levels])
        assert len(np.unique(both)) == 65536


def test_volumes_of_a_4d_file(tmp_path: Path) -> None:
    voxels = np.stack([canonical(), canonical() + 100], axis=-1)
    path = save(tmp_path / "a.nii.gz", voxels)
    with pytest.raises(DataError, match=r"2 volumes; .*--reader-options nifti.volume=0"):
        read_slice(path, 1, NiftiOptions())
    second = read_slice(path, 1, NiftiOptions(volume=1))
    assert np.array_equal(second.array, expected("axial", 1) + 100) and second.frames == 3
    with pytest.raises(DataError, match="no volume 2; the file has 2"):
        read_slice(path, 1, NiftiOptions(volume=2))
    one = save(tmp_path / "one.nii", voxels[..., :1, None])
    assert np.array_equal(read_slice(one, 2, NiftiOptions()).array, expected("axial", 2))
    with pytest.raises(DataError, match="no volume 1; the file has 1"):
        read_slice(one, 2, NiftiOptions(volume=1))


def test_frames(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", canonical())
    with pytest.raises(DataError, match=r"^3 frames; give --frames first"):
        read_slice(path, None, NiftiOptions())
    with pytest.raises(DataError, match="no frame 3; the file has 3"):
        read_slice(path, 3, NiftiOptions())


@pytest.mark.parametrize("shape", [(7, 4), (7, 4, 1), (7, 4, 1, 1), (1, 1), (1, 1, 1)])
def test_a_file_of_one_slice_needs_no_frame(tmp_path: Path, shape: tuple[int, ...]) -> None:
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    path = save(tmp_path / "a.nii", voxels)
    image = read_slice(path, None, NiftiOptions())
    assert image.array.shape == shape[1::-1] and image.frames == 1
    assert np.array_equal(image.array, voxels.reshape(shape[:2]).T[::-1, ::-1])


def test_a_single_slice_is_not_cut_into_lines(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", canonical()[:, :1])
    with pytest.raises(DataError, match=r"only slice is coronal, not axial: .*nifti.axis=coronal"):
        count_slices(path, NiftiOptions())
    assert read_slice(path, None, NiftiOptions(axis="coronal")).array.shape == (3, 4)


def test_whole_scaling_keeps_integers(tmp_path: Path) -> None:
    hounsfield = RNG.integers(-1024, 3000, (6, 5, 1)).astype(np.int16)
    raw = nibabel.Nifti1Image((hounsfield + 1024).astype(np.uint16), np.eye(4))
    raw.header.set_slope_inter(1, -1024)
    nibabel.save(raw, tmp_path / "scaled.nii")
    wanted = read_slice(save(tmp_path / "plain.nii", hounsfield), None, NiftiOptions())
    image = read_slice(tmp_path / "scaled.nii", None, NiftiOptions())
    assert image.array.dtype.kind == "i" and np.array_equal(image.array, wanted.array)
    assert image.value_range == (-1024.0, 64511.0)


def test_other_scaling_gives_floats(tmp_path: Path) -> None:
    raw = RNG.integers(0, 255, (6, 5, 1)).astype(np.uint8)
    image = nibabel.Nifti1Image(raw, np.eye(4))
    image.header.set_slope_inter(-0.5, 3)
    nibabel.save(image, tmp_path / "a.nii")
    found = read_slice(tmp_path / "a.nii", None, NiftiOptions())
    assert np.array_equal(found.array, raw[::-1, ::-1, 0].T * -0.5 + 3)
    assert found.value_range == (-124.5, 3.0)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint32", "int64", "float32", "f8"])
def test_unscaled_types_are_kept(tmp_path: Path, dtype: str) -> None:
    voxels = RNG.integers(0, 100, (3, 2, 1)).astype(dtype)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4), header), tmp_path / "a.nii")
    image = read_slice(tmp_path / "a.nii", None, NiftiOptions())
    assert image.array.dtype == np.dtype(dtype)
    assert np.array_equal(image.array, voxels[::-1, ::-1, 0].T)


@pytest.mark.parametrize("channels", ["RGB", "RGBA"])
def test_colour(tmp_path: Path, channels: str) -> None:
    pixels = RNG.integers(0, 256, (4, 3, 1, len(channels))).astype(np.uint8)
    voxels = pixels.view([(name, "u1") for name in channels])[..., 0]
    path = save(tmp_path / "a.nii", voxels)
    image = read_slice(path, None, NiftiOptions())
    upright = pixels[::-1, ::-1, 0].transpose(1, 0, 2).astype(float)
    alpha = upright[..., 3:] / 255 if channels == "RGBA" else 1.0
    assert image.photometric == "RGB" and image.array.shape == (3, 4, 3)
    assert np.abs(image.array - upright[..., :3] * alpha).max() <= 0.5
    with pytest.raises(DataError, match="RGB voxels have no window"):
        read_slice(path, None, NiftiOptions(window="0:1"))


def test_nan_voxels_are_refused_or_become_the_lowest(tmp_path: Path) -> None:
    voxels = RNG.normal(5, 1, SHAPE).astype(np.float32)
    voxels[0, 0, 0], voxels[1, 2, 0], voxels[:, :, 1] = np.nan, np.inf, np.nan
    voxels[..., 2] -= 1000
    path = save(tmp_path / "a.nii", voxels)
    with pytest.raises(DataError, match=r"^2 voxels .*--reader-options nifti.nan=low"):
        read_slice(path, 0, NiftiOptions())
    low = NiftiOptions(nan="low")
    wanted = voxels[..., 0].copy()
    wanted[0, 0] = wanted[1, 2] = wanted[np.isfinite(wanted)].min()
    assert np.array_equal(read_slice(path, 0, low).array, wanted[::-1, ::-1].T)
    with pytest.raises(DataError, match="every voxel"):
        read_slice(path, 1, low)
    assert read_slice(path, 2, NiftiOptions()).array.max() < -900


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    paths = []
    for number in range(4):
        name = f"{number}.nii.gz" if number % 2 else f"{number}.nii"
        paths.append(save(tmp_path / name, canonical() + 100 * number))
    work = [(number, frame) for frame in range(3) for number in range(4)] * 5

    def read(item: tuple[int, int]) -> bool:
        found = read_slice(paths[item[0]], item[1], NiftiOptions()).array
        return np.array_equal(found, expected("axial", item[1]) + 100 * item[0])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, work))


def test_a_file_is_unpacked_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained: list[int] = []
    drain = packed._drain
    monkeypatch.setattr(packed, "_drain", lambda stream: drained.append(0) or drain(stream))
    path = tmp_path / "a.nii.gz"
    for offset in (0, 1000):
        stored = nibabel.Nifti1Image(canonical() + np.int16(offset), np.eye(4)).to_bytes()
        path.write_bytes(gzip.compress(stored, 0))  # the same size
        os.utime(path, ns=(offset, offset))
        for frame in range(3):
            read_slice(path, frame, NiftiOptions())
        assert len(drained) == 1 + (offset > 0)
    assert read_slice(path, 0, NiftiOptions()).array.min() >= 1000 and len(drained) == 2
    monkeypatch.setattr(packed, "KEPT_BYTES", 10)  # too large to keep
    for frame in range(3):
        array = read_slice(path, frame, NiftiOptions()).array
        assert np.array_equal(array, expected("axial", frame) + 1000)
    assert len(drained) == 5


def table_of(folder: Path, readers: Readers, frames: str) -> ImageTable:
    table = read_table(folder, domain="source", labelled=True, readers=readers)
    return choose_frames(table, frames, readers)


def test_a_run_reads_slices_as_images(tmp_path: Path) -> None:
    for label in ("ill", "well"):
        (tmp_path / label).mkdir()
        save(tmp_path / label / "a.nii.gz", RNG.normal(0, 500, (8, 8, 3)).astype(np.float32))
    readers = plugin_readers(pytest.fail, {"nifti": {"window": "-100:300"}})
    table = table_of(tmp_path, readers, "all")
    assert table.names[:3] == ("ill/a.nii.gz#0", "ill/a.nii.gz#1", "ill/a.nii.gz#2")
    conversion = fit_conversion([table], img_size=8, in_chans=1, readers=readers, frames="all")
    assert set(conversion.windows) == {"display"} and "nifti" in conversion.readers
    batch = ImageSet(table, conversion, readers=readers).batch(range(6))
    stored = nibabel.load(tmp_path / "well" / "a.nii.gz").get_fdata()[..., 1]
    wanted = ((stored[::-1, ::-1].T + 100) / 400).clip(0, 1)
    assert np.allclose(batch[4, 0].numpy(), wanted, atol=1e-6)
    middle = table_of(tmp_path, readers, "middle")
    assert middle.names == ("ill/a.nii.gz", "well/a.nii.gz")
    again = ImageSet(middle, conversion, readers=readers).batch([0, 1])
    assert np.array_equal(again.numpy(), batch[[1, 4]].numpy())
