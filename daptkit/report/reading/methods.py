"""What each method reports of itself, in words and by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daptkit.report.reading.names import in_words
from daptkit.report.reading.words import Report, number, plain


def method_reports(report: Report) -> dict[str, list[tuple[str, str]]]:
    """Return names and values of every method that reports any."""
    classes = report["data"]["classes"]
    return {
        name: [
            (in_words(key), _written(value, classes, by_class=said.get("classes") == classes))
            for key, value in said.items()
            if key != "classes" or value != classes
        ]
        for name, said in report["method_reports"].items()
        if isinstance(said, Mapping) and said
    }


def _written(value: Any, classes: list[str], *, by_class: bool) -> str:
    """Write a value; by class where the method names the classes that its lists run over."""
    if by_class and isinstance(value, list) and len(value) == len(classes) and _numeric(value):
        return "; ".join(f"{c} {number(v, 3)}" for c, v in zip(classes, value, strict=True))
    return plain(value)


def _numeric(values: list[Any]) -> bool:
    return all(
        v is None or (isinstance(v, (int, float)) and not isinstance(v, bool)) for v in values
    )
