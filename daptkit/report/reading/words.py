"""How numbers and lists are written on the page; what is not known is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DASH = "–"
_ROUNDING = 1e-9

LONG = {"source-only": "source-only model", "adapted": "adapted model"}
"""What the models of report.json are called in running text."""

RELIABILITY = {
    "holds": "not contradicted",
    "indicative": "indicative",
    "doubtful": "doubtful",
    "fails": "does not hold",
    "unknown": "unknown",
}
"""How far an estimate of accuracy can be believed, in words; none promises that it is right."""

Report = Mapping[str, Any]
"""The content of report.json."""


def number(value: float | None, digits: int = 2) -> str:
    """Write a number with a fixed number of decimals."""
    if value is None:
        return DASH
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def decimals(value: float | None, digits: int = 3, *, beside: float | None = None) -> str:
    """Write a number with fixed decimals, or with two digits where those would all be 0.

    Args:
        value: the number; what is left of 0 by rounding, below 1e-9, is 0.
        digits: decimals.
        beside: the mean that a deviation belongs to, which is written as that is.
    """
    size = abs(value if beside is None else beside) if value is not None else 0.0
    if value is None or size < _ROUNDING or size >= 0.5 * 10.0**-digits:
        return number(value, digits)
    return f"{value:.1e}".replace("-", "\N{MINUS SIGN}")


def count(value: int | None) -> str:
    """Write a whole number with thousands separated."""
    return number(value, 0)


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share in [0, 1] as a percentage."""
    return DASH if value is None else f"{number(100 * value, digits)}%"


def significant(value: float | None) -> str:
    """Write a number of any size with three significant digits."""
    if value is None:
        return DASH
    if abs(value) >= 1000:
        return count(round(value))
    return f"{value:#.3g}".rstrip(".").replace("-", "\N{MINUS SIGN}")


def between(estimate: Mapping[str, float | None], *, rate: bool = True) -> str:
    """Write the ends of an interval, ``72.2–85.1`` for a rate, or nothing where there is none."""
    low, high = estimate.get("low"), estimate.get("high")
    if low is None or high is None:
        return ""
    if rate:
        return f"{number(100 * low, 1)}–{number(100 * high, 1)}"
    return f"{number(low, 3)}–{number(high, 3)}"


def with_interval(estimate: Mapping[str, float | None]) -> str:
    """Write a rate with its interval: ``79.1% (72.2–85.1)``."""
    ends = between(estimate)
    value = percent(estimate.get("value"))
    return f"{value} ({ends})" if ends else value


def listing(items: Sequence[str]) -> str:
    """Join as a sentence does: ``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def clip(name: str, width: int) -> str:
    """Shorten a name to ``width`` characters, the last of them an ellipsis."""
    return name if len(name) <= width else f"{name[: width - 1].rstrip()}…"


def plain(value: Any) -> str:
    """Write an option, or a number of a method's report, of whatever type."""
    if value is None or value == [] or value == "":
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value)
    return str(value)


def last(report: Report) -> str:
    """Return the name of the delivered model: the adapted one where there is one."""
    return str(report["models"][-1])


def is_adapted(report: Report) -> bool:
    """Say whether a method ran beside the source-only model."""
    return len(report["models"]) > 1
