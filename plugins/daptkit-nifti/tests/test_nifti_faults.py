"""Damaged and unusual NIfTI files: one clear reason, without path and without header text."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from daptkit.data.decode import read_image
from daptkit.data.readers import Readers
from daptkit.errors import DataError, UsageError
from daptkit.plugin import build_options
from daptkit.testing import imports_torch
from daptkit.train.plugins import plugin_readers
from daptkit_nifti import packed
from daptkit_nifti.header import is_nifti
from daptkit_nifti.plugin import NiftiOptions, daptkit_readers
from daptkit_nifti.reader import count_slices, read_slice

RNG = np.random.default_rng(0)
CANARY = b"Quux^Canary"


@pytest.fixture
def readers() -> Readers:
    return plugin_readers(pytest.fail)


def content(voxels: np.ndarray | None = None, kind: Any = nibabel.Nifti1Image) -> bytes:
    """Return a file whose every text field holds a name."""
    image = kind(np.ones((6, 5, 4), np.int16) if voxels is None else voxels, np.eye(4))
    image.header["descrip"] = image.header["aux_file"] = image.header["intent_name"] = CANARY
    if kind is nibabel.Nifti1Image:
        image.header["db_name"] = CANARY
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", CANARY))
    return image.to_bytes()


def patched(offset: int, form: str, *values: Any) -> Callable[[], bytes]:
    """Return a maker of a file with other values at one place of its NIfTI-1 header."""

    def make() -> bytes:
        data = bytearray(content())
        struct.pack_into(f"<{form}", data, offset, *values)
        return bytes(data)

    return make


def noise() -> bytes:
    return content(RNG.integers(0, 2**15, (32, 32, 8)).astype(np.int16))


def flipped() -> bytes:
    data = bytearray(gzip.compress(noise(), 0))  # stored, so that only the check sum can tell
    data[-5000] ^= 1
    return bytes(data)


FAULTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "^empty file$"),
    "empty.gz": (lambda: gzip.compress(b""), "^empty file$"),
    "text": (lambda: b"<html>not found</html>" * 40, "^not a NIfTI file$"),
    "text.gz": (lambda: gzip.compress(b"hello"), "^not a NIfTI file$"),
    "zeros": (lambda: bytes(1000), "^not a NIfTI file$"),
    "analyze": (patched(344, "4s", b""), "^not a NIfTI file, or a header of Analyze"),
    "magic": (patched(344, "4s", b"n+9"), "^not a NIfTI file"),
    "pair": (patched(344, "4s", b"ni1"), r"\.hdr/\.img pair"),
    "half header": (lambda: content()[:200], "^truncated: 200 bytes of a header of 348$"),
    "truncated": (lambda: content()[:-1], "^truncated: [0-9,]+ of [0-9,]+ bytes$"),
    "no voxels": (lambda: content()[:352], "^truncated: 352 of"),
    "truncated inside": (lambda: gzip.compress(content()[:-1]), "^truncated: [0-9,]+ of"),
    "truncated.gz": (lambda: gzip.compress(noise())[:-4000], "^truncated: its gzip data end"),
    "no check sum": (lambda: gzip.compress(noise())[:-8], "^truncated: its gzip data end"),
    "flipped.gz": (flipped, "^damaged: its gzip data do not unpack$"),
    "garbage.gz": (lambda: b"\x1f\x8b\x08" + bytes(range(200)), "^damaged: its gzip"),
    "no dimensions": (patched(40, "h", 0), "^damaged header: its dimensions"),
    "many dimensions": (patched(40, "h", 9), "^damaged header: its dimensions"),
    "negative": (patched(42, "h", -6), "^damaged header: its dimensions"),
    "zero": (patched(44, "h", 0), "^damaged header: its dimensions"),
    "line": (patched(40, "h", 1), "^voxels of 6 are neither"),
    "vectors": (patched(40, "6h", 5, 6, 5, 1, 1, 3), "^voxels of 6 x 5 x 1 x 1 x 3 are neither"),
    "huge": (patched(40, "4h", 3, 32767, 32767, 4), "^32767 x 32767 pixels, more than 100,000,000"),
    "complex": (patched(70, "h", 32), "^complex voxels; save their magnitude$"),
    "bits": (patched(70, "h", 1), "^voxels of NIfTI data type 1 cannot be read$"),
    "unknown type": (patched(70, "h", 999), "^voxels of NIfTI data type 999 cannot be read$"),
    "offset": (patched(108, "f", 100.0), "^damaged header: its voxels do not start"),
    "nan offset": (patched(108, "f", float("nan")), "^damaged header: its voxels do not start"),
    "far offset": (patched(108, "f", 1e9), "^truncated: [0-9,]+ of 1,000,000,240 bytes$"),
    "scaling": (patched(112, "2f", 2.0, float("inf")), "^damaged header: the intercept"),
    "no axis": (patched(280, "4f", 0, 0, 0, 0), "^damaged header: its orientation"),
    "equal axes": (patched(280, "8f", 1, 1, 0, 0, 1, 1, 0, 0), "two equal axes$"),
    "nan axes": (patched(280, "f", float("nan")), "^damaged header: its orientation"),
    "bad codes": (patched(252, "2h", -3, 99), "^the header does not say which side is left"),
    "qform": (patched(252, "2h3f", 1, 0, 3.0, 0, 0), "^damaged header: its orientation cannot"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_faults_have_one_reason(
    tmp_path: Path, readers: Readers, name: str, extension: str
) -> None:
    make, message = FAULTS[name]
    path = tmp_path / f"{CANARY.decode()}{extension}"
    path.write_bytes(make())
    with pytest.raises(DataError, match=message) as caught:
        read_image(path, 0, readers)
    assert caught.value.exit_code == 3
    reason = str(caught.value)
    assert "Canary" not in reason and str(tmp_path) not in reason and "\n" not in reason


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_names_in_the_header_stay_there(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(content(kind=kind))
    image = read_slice(path, 0, NiftiOptions())
    assert image.covariates == {} and "Canary" not in repr(image)
    assert daptkit_readers().identify is None


def test_header_repairs_are_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.nii"
    data = bytearray(patched(76, "4f", 0.0, -1.0, 1.0, 1.0)())  # qfac 0, a negative size
    struct.pack_into("<2h3f", data, 252, 1, 0, 0.0, 0.0, 0.0)  # a qform alone, which needs both
    path.write_bytes(data)
    assert read_slice(path, 0, NiftiOptions()).array.shape == (5, 6)
    assert not caplog.records


def test_files_too_large_to_keep_are_checked_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "KEPT_BYTES", 10)
    path = tmp_path / "a.nii.gz"
    for data, frame, message in (
        (flipped(), 0, "^damaged: its gzip"),
        (gzip.compress(noise())[:-8], 0, "^truncated: its gzip data end"),
        (gzip.compress(noise()[:-1]), 0, "^truncated: [0-9,]+ of"),
        (gzip.compress(noise()[:-1]), 7, "^truncated: less than"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_slice(path, frame, NiftiOptions())


def test_a_missing_file_is_the_hosts_to_report(tmp_path: Path, readers: Readers) -> None:
    with pytest.raises(DataError, match=r"^No such file or directory$"):
        read_image(tmp_path / "a.nii", None, readers)


def test_content_decides_and_not_the_name(tmp_path: Path, readers: Readers) -> None:
    for name, data in {
        "packed.nii": gzip.compress(noise()),
        "plain.nii.gz": noise(),
        "no_extension": noise(),
        "packed_without": gzip.compress(noise()),
        "two": content(kind=nibabel.Nifti2Image),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert readers.is_image(tmp_path / name)
        assert count_slices(tmp_path / name, NiftiOptions()) in (4, 8)
        assert read_image(tmp_path / name, 1, readers).array.dtype == np.int16


def test_sniff() -> None:
    big = nibabel.Nifti1Image(np.ones((2, 2), np.int16), np.eye(4), nibabel.Nifti1Header(None, ">"))
    assert is_nifti(content()[:512]) and is_nifti(big.to_bytes()[:512])
    assert is_nifti(gzip.compress(noise())[:512])
    assert is_nifti(content(kind=nibabel.Nifti2Image)[:512])
    for other in (b"", b"\x89PNG\r\n", bytes(512), gzip.compress(b"text"), b"\x1f\x8bbroken"):
        assert not is_nifti(other)
    assert not is_nifti(patched(0, "i", 1234)()[:512])
    assert not is_nifti(patched(344, "4s", b"ni1")()[:512])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axis": "axail"}, r"'nifti.axis' is one of .* Did you mean 'axial'"),
        ({"volume": "-1"}, "'nifti.volume' must lie in"),
        ({"volume": "first"}, "'nifti.volume' takes a whole number"),
        ({"nan": "zero"}, "'nifti.nan' is one of refuse, low"),
        ({"unoriented": "yes"}, "'nifti.unoriented' is one of refuse, assume"),
        ({"window": "40"}, r"'nifti.window' takes LOW:HIGH, such as -1000:400, not '40'"),
        ({"window": "400:40"}, "'nifti.window' takes LOW:HIGH"),
        ({"window": "0:nan"}, "'nifti.window' takes LOW:HIGH"),
        ({"windw": "0:1"}, "unknown option 'nifti.windw'. Did you mean 'window'"),
    ],
)
def test_wrong_options(values: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        build_options(NiftiOptions, values, "nifti.")
    assert caught.value.exit_code == 2


def test_window_is_what_the_image_shows(tmp_path: Path) -> None:
    options = build_options(NiftiOptions, {"window": "-10:250.5"}, "nifti.")
    path = tmp_path / "a.nii"
    path.write_bytes(content(np.full((3, 2, 1), 7, np.uint8)))
    image = read_slice(path, None, options)
    assert image.display and image.value_range == (-10.0, 250.5)
    assert image.array.dtype == np.float32 and (image.array == 7).all()


def test_plugin_half_is_light() -> None:
    assert not imports_torch("daptkit_nifti.plugin")
