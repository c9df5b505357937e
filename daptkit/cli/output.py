"""What commands print on stdout."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click


def to_json(data: Any) -> str:
    """Return strict JSON: numbers that are not finite become ``null``."""
    return json.dumps(_finite(data), indent=2, allow_nan=False, ensure_ascii=False)


def print_json(data: Any) -> None:
    """Print strict JSON on stdout."""
    click.echo(to_json(data))


def print_columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns; the last is as wide as it likes."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header) - 1)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
        click.echo("  ".join([*cells, row[-1]]).rstrip())


def print_scores(scores: Mapping[str, Any]) -> None:
    """Print the result of ``evaluate``: one line for each number, with its interval."""
    lines = list(_score_lines("", scores))
    width = max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        click.echo(f"{name.ljust(width)}  {text}")


def _score_lines(prefix: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and "value" in value:
        yield prefix, _interval(value)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _score_lines(f"{prefix}.{name}" if prefix else str(name), inner)
    elif isinstance(value, (list, tuple)):
        yield prefix, ", ".join(_text(v) for v in value) or "-"
    else:
        yield prefix, _text(value)


def _interval(score: Mapping[str, Any]) -> str:
    text = _text(score["value"])
    if score.get("low") is None or score.get("high") is None:
        return text
    return f"{text} [{_text(score['low'])}, {_text(score['high'])}]"


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
