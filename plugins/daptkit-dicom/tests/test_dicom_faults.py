"""Damaged files and other objects have one clear reason; no value of a tag is ever told."""

from __future__ import annotations

import logging
import struct
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from daptkit.errors import DataError, UsageError
from daptkit.plugin import build_options
from daptkit.testing import imports_torch
from daptkit_dicom import header, reader
from daptkit_dicom.codestream import frame_size
from daptkit_dicom.plugin import DicomOptions, daptkit_readers
from daptkit_dicom.quiet import quiet
from daptkit_dicom.reader import count_frames, identify, read_frame
from dicom_files import write_dicom

STEPS = np.add.outer(np.arange(33), 2 * np.arange(35)).astype(np.uint16)
CANARY = "CANARYDOE"


def reason(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_frame(path, None, DicomOptions(**options))
    assert "\n" not in str(caught.value) and str(path.parent) not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.dcm", "a.ima", "a"])
@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "empty file"),
        (b"<html>not found</html>", "not a DICOM file"),
        (b"\x08\x00 is how this text starts", "not a DICOM file"),
        (bytes(range(256)) * 4, "not a DICOM file"),
        (b"\0" * 128 + b"DICM", "no pixel data: not an image, or truncated"),
    ],
)
def test_other_content(tmp_path: Path, name: str, content: bytes, wanted: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert reason(path) == wanted
    if wanted.endswith(("file", "DICOM file")):
        for function in (identify, lambda one: count_frames(one, DicomOptions())):
            with pytest.raises(DataError, match=wanted):
                function(path)


def test_missing_file(tmp_path: Path) -> None:
    assert reason(tmp_path / "none.dcm") == "No such file or directory"


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", RLELossless, JPEG2000Lossless])
def test_a_file_cut_anywhere_has_a_reason(tmp_path: Path, syntax: str) -> None:
    if syntax == JPEG2000Lossless:
        pytest.importorskip("openjpeg")
    path = write_dicom(tmp_path / "a.dcm", STEPS, transfer_syntax=syntax)
    whole = path.read_bytes()
    assert read_frame(path, None, DicomOptions()).array.shape == STEPS.shape
    for length in np.linspace(1, len(whole) - 9, 40):  # a delimiter of 8 bytes may end the file
        path.write_bytes(whole[: int(length)])
        assert reason(path)
    path.write_bytes(whole[:-100])
    assert reason(path).startswith("truncated: ")


def test_deflated_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.zeros((200, 200), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, transfer_syntax=DeflatedExplicitVRLittleEndian)
    whole = path.read_bytes()
    assert (read_frame(path, None, DicomOptions()).array == 0).all()
    path.write_bytes(whole[:-20])
    assert reason(path) == "truncated: the deflated data are not complete"
    start = 144 + int.from_bytes(whole[140:144], "little")
    path.write_bytes(whole[:start] + b"\xff" + whole[start + 1 :])
    assert reason(path) == "damaged: it cannot be inflated"
    path.write_bytes(whole)
    monkeypatch.setattr(header, "LARGEST_INFLATED", 10_000)
    assert reason(path) == "inflates to more than 10,000 bytes"


def test_a_small_file_may_claim_any_size(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), Rows=60000, Columns=50000)
    assert reason(path) == "50000 x 60000 pixels, more than 100,000,000"
    pytest.importorskip("openjpeg")
    bomb = write_dicom(tmp_path / "b.dcm", STEPS, transfer_syntax=JPEG2000Lossless)
    size, huge = struct.pack(">2L", 35, 33), struct.pack(">2L", 60000, 60000)
    bomb.write_bytes(bomb.read_bytes().replace(size, huge, 1))
    assert reason(bomb) == (
        "the compressed frame has 60000 x 60000 pixels, the header says 35 x 33"
    )


def test_sizes_in_compressed_frames() -> None:
    jpeg = b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xc3\0\x0b\x08\0\x07\0\x09\x01\x01\x11\0"
    assert frame_size(jpeg) == (7, 9)
    assert frame_size(jpeg.replace(b"\x08\0\x07", b"\x08\0\0")) is None
    siz = b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">4L", 19, 9, 10, 2)
    assert frame_size(siz) == (7, 9)
    for cut in (b"", b"\xff\xd8", jpeg[:12], siz[:20], b"GIF89a"):
        assert frame_size(cut) is None


def test_jpeg_2000_in_boxes(tmp_path: Path) -> None:
    pytest.importorskip("openjpeg")
    path = write_dicom(tmp_path / "a.dcm", STEPS, transfer_syntax=JPEG2000Lossless)
    dataset = pydicom.dcmread(path)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    box = b"\0\0\0\x0cjP  \r\n\x87\n"
    endless = b"\0\0\0\0ftyp"  # pydicom's own search stays at a box of no length
    dataset.PixelData = encapsulate([box + endless + b"\0\0\0\0jp2c" + frame])
    dataset.save_as(path)
    assert np.array_equal(read_frame(path, None, DicomOptions()).array, STEPS)
    dataset.PixelData = encapsulate([box + endless])
    dataset.save_as(path)
    assert reason(path) == "damaged: a JPEG 2000 frame without a codestream"


@pytest.mark.parametrize(
    ("elements", "wanted"),
    [
        ({"Rows": None}, "the header has no Rows"),
        ({"BitsStored": None}, "the header has no BitsStored"),
        ({"PhotometricInterpretation": None}, "the header has no PhotometricInterpretation"),
        ({"NumberOfFrames": -3}, "NumberOfFrames is no count"),
        ({"BitsAllocated": 12, "HighBit": None}, "damaged, or not valid DICOM (ValueError)"),
        ({"SOPClassUID": pydicom.uid.RTPlanStorage, "PixelData": None}, "not an image: an object"),
        ({"PixelData": None}, "no pixel data: the file is truncated, or a header alone"),
    ],
)
def test_headers_that_lack_something(tmp_path: Path, elements: dict[str, Any], wanted: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", STEPS)
    dataset = pydicom.dcmread(path)
    if "PixelData" in elements and "SOPClassUID" in elements:
        del dataset.Rows
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    assert reason(path).startswith(wanted)


@pytest.mark.parametrize("stated", ["YES", "YES "])
def test_burned_in_text_is_refused_unless_allowed(tmp_path: Path, stated: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", STEPS, burned_in=stated)
    assert "--reader-options dicom.burned_in=allow" in reason(path)
    allowed = read_frame(path, None, DicomOptions(burned_in="allow"))
    assert np.array_equal(allowed.array, STEPS)
    for fine in ("NO", None):
        path = write_dicom(tmp_path / "b.dcm", STEPS, burned_in=fine)
        assert np.array_equal(read_frame(path, None, DicomOptions()).array, STEPS)


# Text of each length that stands in a valid file, and is then replaced by the canary.
PLACEHOLDERS = {
    "RescaleSlope": "111111111",
    "WindowCenter": "222222222",
    "NumberOfFrames": "333333333",
    "PixelAspectRatio": "444444444",
    "VOILUTFunction": "LINEAREXX",
    "SOPClassUID": "1.2.3.4.5",
    "PhotometricInterpretation": "MONOCHROM",
    "SpecificCharacterSet": "ISO_IRXXX",
    "StudyInstanceUID": "5.4.3.2.1",
    "MagneticFieldStrength": "777777777",
    "BurnedInAnnotation": "UNCERTAIN",
}


def planted(folder: Path, keyword: str) -> Path:
    """Write a file with the canary in its name, its patient and one field of a wrong type."""
    path = folder / CANARY / f"{CANARY}.dcm"
    value = PLACEHOLDERS[keyword]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rescale = {"RescaleSlope": "1", "RescaleIntercept": "0"}
        elements: dict[str, Any] = {
            "PatientName": CANARY,
            "InstitutionName": CANARY,
            "PatientBirthDate": CANARY,
            "ReferringPhysicianName": CANARY,
            "WindowWidth": "4096",
            "WindowCenter": "2048",
            **rescale,
            keyword: value,
        }
        write_dicom(path, STEPS, patient=CANARY, **elements)
    raw = path.read_bytes()
    assert value.encode() in raw
    path.write_bytes(raw.replace(value.encode(), CANARY.encode()))
    return path


@pytest.fixture
def told(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[list[str]]:
    """Everything that was printed, logged or warned, and what a test adds; searched at the end."""
    caplog.set_level(logging.DEBUG)
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [str(one.message) for one in caught]
    found += [record.getMessage() for record in caplog.records]
    found += [str(record.exc_text) for record in caplog.records]
    found += list(capfd.readouterr())
    assert CANARY not in "\n".join(found)


@pytest.mark.parametrize("keyword", PLACEHOLDERS)
def test_no_value_of_a_tag_is_told(tmp_path: Path, told: list[str], keyword: str) -> None:
    path = planted(tmp_path, keyword)
    options = DicomOptions()
    for read in (
        lambda: read_frame(path, None, options),
        lambda: count_frames(path, options),
        lambda: identify(path),
    ):
        try:
            told.append(repr(read()))
        except DataError as error:
            told += traceback.format_exception(error)
            told[-1] = told[-1].replace(str(tmp_path), "")
    assert not any("during handling" in line.lower() for line in told)


@pytest.mark.parametrize("error", [ValueError(CANARY), OSError(CANARY), KeyError(CANARY)])
def test_no_text_of_another_error_is_told(
    tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    path = write_dicom(tmp_path / "a.dcm", STEPS)
    monkeypatch.setattr(reader, "read_stored", fail)
    with pytest.raises(DataError, match=rf"not valid DICOM \({type(error).__name__}\)") as caught:
        read_frame(path, None, DicomOptions())
    told += traceback.format_exception(caught.value)


def test_the_canary_would_be_found(tmp_path: Path) -> None:
    """pydicom alone does tell: what the test above looks for exists."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _ = pydicom.dcmread(planted(tmp_path, "StudyInstanceUID")).StudyInstanceUID
    assert any(CANARY in str(one.message) for one in caught)


def test_damaged_frames_are_not_logged(tmp_path: Path, told: list[str]) -> None:
    path = write_dicom(tmp_path / "a.dcm", STEPS, transfer_syntax=RLELossless)
    raw = path.read_bytes()
    at = raw.index(b"\xfe\xff\x00\xe0", raw.index(b"\xe0\x7f\x10\x00") + 20)
    path.write_bytes(raw[: at + 8] + CANARY.encode() + raw[at + 8 + len(CANARY) :])
    told.append(reason(path))
    assert "RLE Lossless: a frame cannot be decoded by pydicom" in told[-1]


def test_other_threads_keep_their_warnings(caplog: pytest.LogCaptureFixture) -> None:
    def speak() -> None:
        warnings.warn("from elsewhere", UserWarning, stacklevel=1)
        logging.getLogger("pydicom").warning("from elsewhere")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet():
            speak()
            assert not caught and not caplog.records
            other = threading.Thread(target=speak)
            other.start()
            other.join()
        assert len(caught) == 1 and len(caplog.records) == 1
        speak()
        assert len(caught) == 2 and len(caplog.records) == 2


def test_identifiers_are_not_in_the_text_of_an_identity(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", STEPS, patient=CANARY, study="1.2", series="1.3")
    found = identify(path)
    assert found.patient == CANARY and CANARY not in repr(found)


def test_specification_and_options() -> None:
    spec = daptkit_readers()
    assert spec.name == "dicom" and ".dcm" in spec.extensions
    assert build_options(spec.options, {"voi_index": "2"}).voi_index == 2
    for name, value in (("voi", "on"), ("voi_index", "-1"), ("burned_in", "yes")):
        with pytest.raises(UsageError, match=f"dicom.{name}"):
            build_options(spec.options, {name: value}, "dicom.")


def test_torch_free_half_and_sniffer_import_no_torch() -> None:
    assert not imports_torch("daptkit_dicom.plugin")
    assert not imports_torch("daptkit_dicom.sniff")
