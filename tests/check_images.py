"""Pictures that differ from one another, and files of them, for the tests of ``data check``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from daptkit.data import DecodedImage, FileIdentity, Format, Readers
from daptkit.errors import DataError

EXTENSION = ".scan"


def picture(seed: int, size: int = 48) -> np.ndarray:
    """Draw a (size, size) uint8 picture with the spectrum of a photograph, 1 / frequency."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).normal(size=(size, size)))
    frequency = np.hypot(np.fft.fftfreq(size)[:, np.newaxis], np.fft.rfftfreq(size))
    drawn = np.fft.irfft2(spectrum / (1 / size + frequency), (size, size))
    scaled = (drawn - drawn.min()) / (drawn.max() - drawn.min())
    return (20 + 200 * scaled).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """Write pixels in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def class_folders(root: Path, classes: Mapping[str, Iterable[int]]) -> Path:
    """Write ``class/seed.png`` for each seed of each class."""
    for name, seeds in classes.items():
        for seed in seeds:
            save(root / name / f"{seed}.png", picture(seed))
    return root


def manifest(path: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    """Write a manifest, and the picture of each row's path that is not there yet."""
    listed = [dict(row) for row in rows]
    columns = list(dict.fromkeys(name for row in listed for name in row))
    lines = [",".join(columns)]
    for number, row in enumerate(listed):
        lines.append(",".join(row.get(name, "") for name in columns))
        image = path.parent / row["path"]
        if not image.exists():
            save(image, picture(1000 + number))
    path.write_text("\n".join(lines) + "\n")
    return path


def good_manifest(folder: Path) -> Path:
    """Write a manifest of 24 images that has no problem."""
    return manifest(folder / "good.csv", rows(24, label=halves, patient_id=patients))


def rows(count: int, **columns: Callable[[int], str]) -> list[dict[str, str]]:
    """Return the rows of a manifest; each column is a function of the row's number."""
    return [
        {"path": f"{row}.png", **{name: value(row) for name, value in columns.items()}}
        for row in range(count)
    ]


def patients(row: int) -> str:
    """Return a patient of the row's own."""
    return f"p{row}"


def halves(row: int) -> str:
    """Return one of two classes, in turn."""
    return "ab"[row % 2]


def codes(found: dict[str, Any], level: str | None = None) -> set[str]:
    """Return the codes of the problems that were found."""
    return {p["code"] for p in found["problems"] if level in (None, p["level"])}


def message(found: dict[str, Any], code: str) -> str:
    """Return what is said of a problem."""
    text: str = next(p["message"] for p in found["problems"] if p["code"] == code)
    return text


def scan_file(path: Path, seed: int, patient: str = "", **values: Any) -> Path:
    """Write a file of the made-up format, whose header names the patient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seed": seed, "patient": patient, **values}))
    return path


def scan_readers() -> Readers:
    """Return the reader of the made-up format; like DICOM, it knows patients."""
    return Readers(
        [Format(name="scan", extensions=(EXTENSION,), read=_read, count=_count, identify=_identify)]
    )


def _header(path: Path) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(path.read_text())
    if header.get("broken"):
        raise ValueError(f"cannot parse the header of {header['patient']}")
    return header


def _read(path: Path, frame: int | None) -> DecodedImage:
    header = _header(path)
    if header.get("damaged"):
        raise DataError("truncated")
    pixels = picture(header["seed"] + (frame or 0)).astype(np.uint16) * 16
    return DecodedImage(
        array=pixels,
        value_range=(0.0, 4095.0),
        frames=header.get("frames", 1),
        covariates=header.get("covariates", {}),
        display=True,
    )


def _count(path: Path) -> int:
    return int(_header(path).get("frames", 1))


def _identify(path: Path) -> FileIdentity:
    header = _header(path)
    return FileIdentity(
        patient=header["patient"],
        study=header.get("study", ""),
        series=header.get("series", ""),
    )
