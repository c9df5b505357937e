"""Two sites of small images, manifests of them, and commands run on those in this process."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from daptkit.cli.main import run
from fakes import EDGE, drawn

HEADER = "path,label,patient_id"
TINY = (
    *("--model", "daptkit_lenet", "--img-size", str(EDGE), "--in-chans", "1", "--bottleneck", "16"),
    *("--epochs", "1", "--batch-size", "8", "--aug", "none", "--no-report", "--device", "cpu"),
)
Rows = list[list[str]]
_numbers = count()


@dataclass(frozen=True)
class Sites:
    """Images of two sites in one folder, and their rows: path, label, patient."""

    folder: Path
    source: Rows
    target: Rows

    def write(self, rows: Rows, header: str = HEADER) -> Path:
        return self.write_text(text_of(rows, header))

    def write_text(self, text: str | bytes) -> Path:
        path = self.folder / f"{next(_numbers)}.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path


@dataclass(frozen=True)
class Done:
    """What a command answered."""

    code: int
    err: str
    stdout: str
    out: Path

    def predictions(self) -> list[dict[str, str]]:
        with (self.out / "predictions.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def record(self) -> Any:
        return json.loads((self.out / "run.json").read_text())


Command = Callable[..., Done]


def draw_sites(folder: Path) -> Sites:
    """Draw 40 images of the source and 20 of the target, two of each patient, one of each class."""
    (folder / "i").mkdir()
    rows: dict[str, Rows] = {}
    for name, number, seed in (("s", 40, 1), ("t", 20, 2)):
        rows[name] = []
        for row, image in enumerate(drawn(number, seed)[0]):
            path = f"i/{name}{row:02d}.png"
            rows[name].append([path, ("neg", "pos")[row % 2], f"{name}{row // 2}"])
            Image.fromarray(image).save(folder / path)
    return Sites(folder, rows["s"], rows["t"])


def trained(sites: Sites, out: Path) -> Path:
    """Adapt to faultless manifests."""
    places = ["--source", str(sites.write(sites.source)), "--target"]
    places += [str(sites.write(sites.target)), "--out", str(out)]
    assert run(["adapt", *places, *TINY]) == 0
    return out


def commands(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what runs a command; whatever that says, it shows no traceback."""

    def call(*arguments: object, out: Path = Path()) -> Done:
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err and "internal error" not in said.err
        return Done(code, said.err, said.out, out)

    return call


def adapting(sites: Sites, folder: Path, command: Command) -> Command:
    """Return what runs ``adapt`` on manifests, each time into a new folder."""

    def call(*sources: Path, target: Path | None = None, options: tuple[str, ...] = ()) -> Done:
        out = folder / f"run{next(_numbers)}"
        given = [argument for source in sources for argument in ("--source", source)]
        given += ["--target", target or sites.write(sites.target), "--out", out]
        return command("adapt", *given, *TINY, *options, out=out)

    return call


def text_of(rows: Rows, header: str = HEADER) -> str:
    return "\n".join([header, *(",".join(row) for row in rows)]) + "\n"


def with_column(rows: Rows, values: list[str]) -> Rows:
    return [[*row, value] for row, value in zip(rows, values, strict=True)]
