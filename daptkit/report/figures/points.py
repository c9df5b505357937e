"""The plotted points: embedding.csv."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from daptkit.errors import DaptkitError


@dataclass(frozen=True)
class Points:
    """Points of one model and domain: coordinates and class, all of one length."""

    x: list[float]
    y: list[float]
    classes: list[str]


def read_points(path: Path, advice: str) -> dict[tuple[str, str], Points]:
    """Read embedding.csv, by model and domain.

    Args:
        path: the file.
        advice: what to do where it cannot be read.

    Raises:
        DaptkitError: the file is missing or damaged.
    """
    points: dict[tuple[str, str], Points] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                these = points.setdefault((row["model"], row["domain"]), Points([], [], []))
                these.x.append(_finite(row["x"]))
                these.y.append(_finite(row["y"]))
                these.classes.append(row["class"])
    except OSError as error:
        raise DaptkitError(f"cannot read '{path}': {error.strerror}. {advice}") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DaptkitError(f"'{path}' is damaged. {advice}") from error
    return points


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
