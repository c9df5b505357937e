"""Sites to make second ones of, and what was made, for the tests of ``data simulate``."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from daptkit.data.encode import encode_png
from daptkit.train.progress import SilentReporter


class Lines(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def truth_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "truth.json").read_text(encoding="utf-8"))


def site(
    folder: Path, images: list[np.ndarray], *, labels: tuple[str, ...] = ("a", "b"), **columns: Any
) -> Path:
    """Write PNG files and a manifest whose labels alternate."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number, pixels in enumerate(images):
        (folder / f"{number}.png").write_bytes(encode_png(pixels))
        own = {name: values[number] for name, values in columns.items()}
        rows.append({"path": f"{number}.png", "label": labels[number % len(labels)], **own})
    with (folder / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "m.csv"


def noise_image(seed: int, top: int = 255, shape: tuple[int, ...] = (12, 10)) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, top + 1, shape)
    return values.astype(np.uint8 if top == 255 else np.uint16)
