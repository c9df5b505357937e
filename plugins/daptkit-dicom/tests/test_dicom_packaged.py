"""Every file that pydicom ships: its own documented pipeline, or one clear reason."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

from daptkit.errors import DataError
from daptkit.reader import DecodedImage
from daptkit_dicom.plugin import DicomOptions
from daptkit_dicom.reader import count_frames, read_frame
from daptkit_dicom.sniff import is_dicom

FOLDER = Path(pydicom.data.__file__).parent / "test_files"
NO_IMAGE = "not an image: an object of the kind '{}'"
HEADER_ALONE = "no pixel data: the file is truncated, or a header alone"

REFUSED = {
    "DICOMDIR": "not an image: a DICOMDIR, which lists files",
    "DICOMDIR-bigEnd": "not an image: a DICOMDIR, which lists files",
    "DICOMDIR-empty.dcm": "not an image: a DICOMDIR, which lists files",
    "DICOMDIR-implicit": "not an image: a DICOMDIR, which lists files",
    "DICOMDIR-nooffset": "not an image: a DICOMDIR, which lists files",
    "DICOMDIR-nopatient": "not an image: a DICOMDIR, which lists files",
    "DICOMDIR-reordered": "not an image: a DICOMDIR, which lists files",
    "ExplVR_BigEndNoMeta.dcm": NO_IMAGE.format("RT Ion Plan Storage"),
    "ExplVR_LitEndNoMeta.dcm": NO_IMAGE.format("RT Ion Plan Storage"),
    "IM000000": HEADER_ALONE,
    # libjpeg, too, finds this frame damaged.
    "JPEG-lossy.dcm": "JPEG Extended (Process 2 and 4): a frame cannot be decoded by pylibjpeg: "
    "damaged, or an unusual variant",
    # Four bytes of the frame's header were replaced by a delimiter.
    "JPEG2000-embedded-sequence-delimiter.dcm": "the compressed frame has 3722445056 x 1024 "
    "pixels, the header says 256 x 1024",
    "MR_truncated.dcm": "truncated: 8,130 of 8,192 bytes of pixel data",
    "UN_sequence.dcm": HEADER_ALONE,
    "badVR.dcm": "NumberOfFrames is no number",
    "empty_charset_LEI.dcm": "no pixel data: not an image, or truncated",
    "meta_missing_tsyntax.dcm": "the header has no Rows",
    "nested_priv_SQ.dcm": "the header has no Rows",
    "no_meta.dcm": "not a DICOM file",
    "no_meta_group_length.dcm": HEADER_ALONE,
    "priv_SQ.dcm": HEADER_ALONE,
    "reportsi.dcm": NO_IMAGE.format("Basic Text SR Storage"),
    "reportsi_with_empty_number_tags.dcm": NO_IMAGE.format("Basic Text SR Storage"),
    "rtplan.dcm": NO_IMAGE.format("RT Plan Storage"),
    "rtplan_truncated.dcm": NO_IMAGE.format("RT Plan Storage"),
    "rtstruct.dcm": NO_IMAGE.format("RT Structure Set Storage"),
    "test-SR.dcm": NO_IMAGE.format("Comprehensive SR Storage"),
    "waveform_ecg.dcm": NO_IMAGE.format("12-lead ECG Waveform Storage"),
}


def packaged() -> list[Path]:
    """Files named .dcm, and those of whose content the standard says that they are DICOM."""
    found = [p for p in sorted(FOLDER.rglob("*")) if p.is_file()]
    # The other images of TINY_ALPHA are headers like its first.
    found = [p for p in found if not p.name.startswith("IM") or p.name == "IM000000"]
    return [p for p in found if p.suffix == ".dcm" or b"DICM" in p.read_bytes()[128:132]]


def documented(dataset: Dataset, frame: int) -> np.ndarray:
    """Return grey in [0, 1] where the file says what to show, and bytes / 255; else values."""
    stored = pixel_array(dataset, index=frame)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)
        return coloured / np.iinfo(coloured.dtype).max
    if stored.ndim == 3:
        return stored / np.iinfo(stored.dtype).max
    values = apply_modality_lut(stored, dataset)
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if "WindowCenter" not in dataset:
        return values / high if not signed and bits <= 8 else values
    slope, intercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
    low, high = low * slope + intercept, high * slope + intercept
    return (apply_voi_lut(values, dataset) - low) / (high - low)


def shown(image: DecodedImage) -> np.ndarray:
    low, high = image.value_range
    scaled = image.display or image.array.dtype == np.uint8
    return (image.array.astype(np.float64) - low) / (high - low) if scaled else image.array


@pytest.mark.parametrize("path", packaged(), ids=lambda path: path.name)
def test_agrees_with_the_documented_pipeline_or_says_why_not(path: Path) -> None:
    options = DicomOptions()
    if path.name in REFUSED:
        with pytest.raises(DataError) as caught:
            read_frame(path, None, options)
        assert str(caught.value) == REFUSED[path.name]
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
    frames = int(dataset.get("NumberOfFrames") or 1)
    assert count_frames(path, options) == frames
    for frame in {0, frames // 2, frames - 1}:
        image = read_frame(path, frame if frames > 1 else None, options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = documented(dataset, frame)
        assert image.frames == frames
        # A 16-bit palette is cut to its higher bytes.
        palette = dataset.PhotometricInterpretation == "PALETTE COLOR"
        np.testing.assert_allclose(shown(image), wanted, rtol=0, atol=4e-3 if palette else 1e-6)
        inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
        assert (image.photometric == "MONOCHROME1") == inverted
        assert image.array.ndim == (3 if image.photometric == "RGB" else 2)


def test_sniffing_agrees_with_reading() -> None:
    seen = set()
    for path in packaged():
        start = path.read_bytes()[:512]
        directory = path.name.startswith("DICOMDIR")
        assert is_dicom(start) == (start[128:132] == b"DICM" and not directory)
        seen.add(is_dicom(start))
    assert seen == {True, False}
    assert not is_dicom(b"") and not is_dicom(b"DICM" * 10)
