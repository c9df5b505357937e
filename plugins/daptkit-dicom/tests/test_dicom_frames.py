"""Frames and compression of files of known pixels, and what their headers say they are of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate_extended, generate_frames
from pydicom.pixels.decoders import JPEG2000LosslessDecoder, JPEGExtended12BitDecoder
from pydicom.uid import (
    MPEG2MPML,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from daptkit.errors import DataError
from daptkit_dicom.plugin import DicomOptions
from daptkit_dicom.reader import count_frames, identify
from dicom_files import LOSSLESS, NATIVE, STEPS, need_encoder, read, rewrite, spanning, write_dicom

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_compression_without_loss(tmp_path: Path, syntax: str, dtype: str) -> None:
    need_encoder(syntax)
    low, high = (-2048, 2047) if dtype == "int16" else (0, 255 if dtype == "uint8" else 4095)
    stored = (low + STEPS * (high - low) // STEPS.max()).astype(dtype)
    path = write_dicom(tmp_path / "a.dcm", stored, transfer_syntax=syntax)
    assert np.array_equal(read(path).array, stored)
    shown = write_dicom(
        tmp_path / "b.dcm", stored, transfer_syntax=syntax, window=spanning(low, high)
    )
    wanted = (stored.astype(float) - low) / (high - low)
    np.testing.assert_allclose(read(shown).array, wanted, atol=1e-6)


@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS])
def test_frames(tmp_path: Path, syntax: str) -> None:
    need_encoder(syntax)
    stored = np.stack([STEPS + 20 * frame for frame in range(4)]).astype(np.uint8)
    assert stored[0].size % 2  # frames do not start at even bytes
    path = write_dicom(tmp_path / "a.dcm", stored, transfer_syntax=syntax)
    assert count_frames(path, DicomOptions()) == len(stored)
    for index, frame in enumerate(stored):
        image = read(path, index)
        assert image.frames == len(stored) and np.array_equal(image.array, frame)
    with pytest.raises(DataError, match=rf"^{len(stored)} frames; give --frames first"):
        read(path)
    with pytest.raises(DataError, match=rf"no frame {len(stored)}; the file has"):
        read(path, len(stored))


def test_frames_of_an_extended_offset_table(tmp_path: Path) -> None:
    stored = np.stack([STEPS + 20 * frame for frame in range(3)]).astype(np.uint8)
    path = write_dicom(tmp_path / "a.dcm", stored, transfer_syntax=RLELossless)
    dataset = pydicom.dcmread(path)
    frames = list(generate_frames(dataset.PixelData, number_of_frames=3))
    pixels, offsets, lengths = encapsulate_extended(frames[::-1])
    # The table names the frames in the order of the file before.
    backwards = (np.frombuffer(one, "<u8")[::-1].tobytes() for one in (offsets, lengths))
    table = dict(zip(("ExtendedOffsetTable", "ExtendedOffsetTableLengths"), backwards, strict=True))
    rewrite(path, PixelData=pixels, **table)
    for index, frame in enumerate(stored):
        assert np.array_equal(read(path, index).array, frame)


def test_one_frame_needs_no_name(tmp_path: Path) -> None:
    stored = RNG.integers(0, 256, (1, 5, 4)).astype(np.uint8)
    path = write_dicom(tmp_path / "a.dcm", stored)
    assert np.array_equal(read(path).array, stored[0])
    assert np.array_equal(read(path, 0).array, stored[0])
    unstated = write_dicom(tmp_path / "b.dcm", stored[0])
    assert count_frames(unstated, DicomOptions()) == 1


def test_packed_bits_of_frames_that_share_a_byte(tmp_path: Path) -> None:
    stored = RNG.integers(0, 2, (3, 3, 5)).astype(np.uint8)
    path = write_dicom(tmp_path / "a.dcm", stored, bits=1)
    for index, frame in enumerate(stored):
        assert np.array_equal(read(path, index).array, frame * 255)


def groups(slopes: list[float], windows: list[tuple[float, float]]) -> list[Dataset]:
    found = []
    for slope, (center, width) in zip(slopes, windows, strict=True):
        rescale, voi, group = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, -5
        voi.WindowCenter, voi.WindowWidth = center, width
        group.PixelValueTransformationSequence = [rescale]
        group.FrameVOILUTSequence = [voi]
        found.append(group)
    return found


@pytest.mark.parametrize("syntax", NATIVE)
def test_transforms_of_each_frame(tmp_path: Path, syntax: str) -> None:
    stored = RNG.integers(0, 4096, (3, 4, 5)).astype(np.uint16)
    slopes, windows = [1.0, 2.0, 3.0], [spanning(0, 1000), spanning(0, 4000), spanning(9, 12000)]
    path = write_dicom(
        tmp_path / "a.dcm",
        stored,
        transfer_syntax=syntax,
        PerFrameFunctionalGroupsSequence=groups(slopes, windows),
    )
    shared = write_dicom(
        tmp_path / "b.dcm",
        stored,
        transfer_syntax=syntax,
        window=(1, 2),
        SharedFunctionalGroupsSequence=groups(slopes[1:2], windows[1:2]),
    )
    for index, (slope, (center, width)) in enumerate(zip(slopes, windows, strict=True)):
        values = stored[index] * slope - 5.0
        assert np.array_equal(read(path, index, voi="off").array, values)
        wanted = ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)
        np.testing.assert_allclose(read(path, index).array, wanted, atol=1e-6)
        wanted = ((stored[index] * 2.0 - 5) / 4000).clip(0, 1)
        np.testing.assert_allclose(read(shared, index).array, wanted, atol=1e-6)


def test_missing_decoder_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_encoder(JPEG2000Lossless)
    path = write_dicom(
        tmp_path / "a.dcm", STEPS.astype(np.uint16), transfer_syntax=JPEG2000Lossless
    )
    # GDCM is never asked, since it ends the process on damaged frames.
    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {"gdcm": None})
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == (
        "JPEG 2000 Image Compression (Lossless Only) needs a decoder: "
        'pip install "daptkit-dicom[codecs]"'
    )


def test_pillow_is_not_asked_for_twelve_bit_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(pydicom.data.__file__).parent / "test_files" / "JPGExtended.dcm"
    monkeypatch.setattr(JPEGExtended12BitDecoder, "_available", {"pillow": None})
    with pytest.raises(DataError, match=r"JPEG Extended .* needs a decoder: pip install"):
        read(path)


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        (MPEG2MPML, "^MPEG2 .* is not supported$"),
        ("1.2.3.4.5", "^an unknown transfer syntax is not supported$"),
    ],
)
def test_unknown_encodings(tmp_path: Path, syntax: str, reason: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8))
    raw = path.read_bytes()
    old = ExplicitVRLittleEndian.encode() + b"\0"
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    length = bytes([len(old), 0]), bytes([len(new), 0])
    meta = int.from_bytes(raw[140:144], "little") + len(new) - len(old)
    raw = raw[:140] + meta.to_bytes(4, "little") + raw[144:]
    path.write_bytes(raw.replace(b"UI" + length[0] + old, b"UI" + length[1] + new))
    with pytest.raises(DataError, match=reason):
        read(path)


def test_threads_read_what_one_reads(tmp_path: Path) -> None:
    paths = []
    for index, syntax in enumerate((ExplicitVRLittleEndian, RLELossless, ImplicitVRLittleEndian)):
        stored = RNG.integers(0, 4096, (3, 24, 24)).astype(np.uint16)
        path = tmp_path / f"{index}.dcm"
        write_dicom(path, stored, transfer_syntax=syntax, window=spanning(0, 4095))
        paths += [(path, frame) for frame in range(3)]
    alone = [read(*one).array for one in paths]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda one: read(*one).array, paths * 10))
    for index, array in enumerate(together):
        assert np.array_equal(array, alone[index % len(alone)])


@pytest.mark.parametrize("syntax", NATIVE)
def test_no_preamble_and_no_meta_header(tmp_path: Path, syntax: str) -> None:
    stored = RNG.integers(0, 4096, (4, 5)).astype(np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm", stored, transfer_syntax=syntax, patient="7", preamble=False
    )
    assert np.array_equal(read(path).array, stored)
    assert identify(path).patient == "7"


def test_identity_and_covariates(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a.dcm",
        np.zeros((2, 2), np.uint8),
        patient=" 0042 ",
        study="1.2.3",
        series="1.2.3.4",
        manufacturer="ACME",
        model="Scan 9",
        field_strength=1.5,
        PatientName="Doe^Jane",
        PatientBirthDate="19700101",
    )
    found = identify(path)
    assert (found.patient, found.study, found.series) == ("0042", "1.2.3", "1.2.3.4")
    covariates = {"manufacturer": "ACME", "model": "Scan 9", "field_strength": 1.5}
    assert read(path).covariates == covariates
    bare = identify(write_dicom(tmp_path / "b.dcm", np.zeros((2, 2), np.uint8)))
    assert (bare.patient, bare.study, bare.series) == ("", "", "")
    gauss = write_dicom(tmp_path / "c.dcm", np.zeros((2, 2), np.uint8), field_strength=15000)
    assert read(gauss).covariates == {"field_strength": 1.5}
