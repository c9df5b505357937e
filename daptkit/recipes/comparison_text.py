"""A comparison as text: ``compare.csv``, and the tables that the terminal shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from daptkit.recipes.evaluating import TRUE_SCORES
from daptkit.report.reading.comparing import (
    ESTIMATES,
    SCORE_NAMES,
    assumption_lines,
    cells,
    collapsed,
    method_name,
    recommendation,
    score_columns,
    shift_line,
    summary,
    verdicts,
)
from daptkit.report.reading.comparing import rows as rows_of
from daptkit.report.reading.words import DASH, decimals

WIDTH = 400
"""Never cut a cell: tables are as wide as they need to be."""
Data = Mapping[str, Any]


def csv_text(data: Data) -> str:
    """Return one row for each run and one, with mean and standard deviation, for each method.

    ``row`` is ``run`` or ``method``; columns ``x_sd`` are filled in rows of methods, ``x_low`` and
    ``x_high``, the 95% interval, in rows of runs. Columns that begin with ``true_`` are there where
    target labels were given.
    """
    rows = [_run_row(data, cell) for cell in cells(data)]
    rows += [_method_row(data, method) for method in rows_of(data)]
    out = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    true = [name for name in columns if name.startswith("true_")]
    order = [name for name in columns if name not in true] + true
    writer = csv.DictWriter(out, order, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value is None else value for name, value in row.items()})
    return out.getvalue()


def _run_row(data: Data, cell: Data) -> dict[str, Any]:
    row: dict[str, Any] = {
        "row": "run",
        "method": cell["method"],
        "seed": cell["seed"],
        "status": cell["status"],
        "reason": cell.get("reason"),
        "rank": _place(data, cell),
        "verdict": (cell.get("verdict") or {}).get("verdict"),
        "vetoed": None if cell["status"] == "failed" else _yes(bool(cell["vetoes"])),
        "collapsed": _yes(cell["collapse"]["collapsed"]) if "collapse" in cell else None,
    }
    for name in _columns(data):
        row[name], row[f"{name}_sd"] = cell["values"].get(name), None
    for estimate in cell.get("estimates", ()):
        for end in ("low", "high"):
            row[f"estimate_{estimate['name']}_{end}"] = estimate["estimated_accuracy"][end]
    for name, score in _true(data, cell["name"]).items():
        row[f"true_{name}"], row[f"true_{name}_sd"] = score["value"], None
        row[f"true_{name}_low"], row[f"true_{name}_high"] = score["low"], score["high"]
    return row


def _method_row(data: Data, method: str) -> dict[str, Any]:
    cells = _of(data, method)
    done = [cell for cell in cells if cell["status"] == "done"]
    row: dict[str, Any] = {
        "row": "method",
        "method": method,
        "status": "done" if len(done) == len(cells) else f"{len(cells) - len(done)} failed",
        "rank": data["choice"]["rank"].get(method),
        "vetoed": _yes(method in data["choice"]["vetoes"]),
        "collapsed": _yes(any(cell["collapse"]["collapsed"] for cell in done)),
    }
    for name, found in summary(data, method).items():
        row[name], row[f"{name}_sd"] = found["mean"], found["sd"]
    if data["audit"] is not None:
        for name, found in data["audit"]["summary"][method].items():
            row[f"true_{name}"], row[f"true_{name}_sd"] = found["mean"], found["sd"]
    return row


def _columns(data: Data) -> list[str]:
    return list(dict.fromkeys(n for cell in data["cells"] for n in cell["values"]))


def _true(data: Data, name: str) -> dict[str, Data]:
    """Return the true scores of a run, and what it gained, by column."""
    one = None if data["audit"] is None else data["audit"]["cells"].get(name)
    if one is None:
        return {}
    found = {score: one[score] for score in TRUE_SCORES}
    gained = one["difference"] or {}
    return found | {f"gained_{s}": gained[s] for s in TRUE_SCORES if s in gained}


def _place(data: Data, cell: Data) -> int | None:
    order = data["choice"]["seeds"].get(str(cell["seed"]), {"order": []})["order"]
    return order.index(cell["method"]) + 1 if cell["method"] in order else None


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def summary_text(data: Data, reasons: Mapping[str, str]) -> str:
    """Return the closing tables of a comparison.

    Args:
        data: content of ``compare.json``.
        reasons: failed cell to why, for the terminal.
    """
    file = io.StringIO()
    console = Console(file=file, width=WIDTH, highlight=False, markup=False, emoji=False)
    seeds = data["seeds"]
    of = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean ± sd of seeds {seeds[0]} to {seeds[-1]}"
    console.print(f"{len(data['methods'])} methods, {of}. No target label was read for:")
    for header, row in ((_MAIN, _main_row), (_estimates_header(data), _estimates_row)):
        console.print(_table(header, [row(data, m) for m in rows_of(data)]))
    for line in assumption_lines(data):
        console.print(line, soft_wrap=True)
    for title, names in _score_tables(data):
        header = [title, *names.values()]
        console.print(_table(header, [_scores_row(data, m, names) for m in data["methods"]]))
    console.print(shift_line(data), soft_wrap=True)
    for method, vetoes in data["choice"]["vetoes"].items():
        for veto in vetoes:
            console.print(f"veto, {method}, {veto}", soft_wrap=True)
    console.print(recommendation(data), soft_wrap=True)
    for cell, reason in reasons.items():
        console.print(f"failed, {cell}: {reason}", soft_wrap=True)
    if data["audit"] is not None:
        console.print("\nTrue scores by --target-labels; nothing above has seen them:")
        console.print(_table(_TRUE_HEADER, [_true_row(data, m) for m in rows_of(data)]))
        for line in _gains(data):
            console.print(line, soft_wrap=True)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip()


_TRUE_HEADER = (
    "method",
    "accuracy",
    "balanced accuracy",
    "AUROC",
    "gained accuracy",
    "gained balanced",
)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, title in enumerate(header):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


_MAIN = (
    "method",
    "source validation",
    "collapse",
    "PAD after",
    "MMD² after",
    "seconds",
    "verdict",
    "rank",
)


def _main_row(data: Data, method: str) -> list[str]:
    found, rank = summary(data, method), data["choice"]["rank"].get(method)
    without = "vetoed" if method in data["choice"]["vetoes"] else "-"
    return [
        method_name(method),
        _mean(found.get("source_balanced_accuracy")),
        collapsed(_of(data, method)).replace(DASH, "-"),
        _mean(found.get("proxy_a_distance")),
        _mean(found.get("mmd2")),
        _mean(found.get("train_seconds"), 1),
        verdicts(_of(data, method)).replace(DASH, "-"),
        without if rank is None else f"{rank:.1f}",
    ]


def _estimates_header(data: Data) -> list[str]:
    return ["estimated accuracy", *(ESTIMATES[name] for name in _estimates(data))]


def _estimates_row(data: Data, method: str) -> list[str]:
    """Return the estimates of a method, with the interval where there is one run alone."""
    cells = _of(data, method)
    row = [method_name(method)]
    for name in _estimates(data):
        text = _mean(summary(data, method).get(f"estimate_{name}"))
        alone = [e for e in cells[0].get("estimates", ()) if e["name"] == name]
        if len(cells) == 1 and alone and alone[0]["estimated_accuracy"]["low"] is not None:
            ends = alone[0]["estimated_accuracy"]
            text = f"{text} ({ends['low']:.3f} to {ends['high']:.3f})"
        row.append(text)
    return row


def _score_tables(data: Data) -> list[tuple[str, dict[str, str]]]:
    """Return title and columns of each table: daptkit's own scores, then those of plugins."""
    names = score_columns(data)
    own = {name: title for name, title in names.items() if name in SCORE_NAMES}
    others = {name: title for name, title in names.items() if name not in own}
    tables = [("selection score", own), ("score of a plugin", others)]
    return [(title, columns) for title, columns in tables if columns]


def _scores_row(data: Data, method: str, names: Iterable[str]) -> list[str]:
    found = data["summary"][method]
    return [method_name(method), *(_mean(found.get(f"score_{name}")) for name in names)]


def _true_row(data: Data, method: str) -> list[str]:
    found = data["audit"]["summary"][method]
    names = [*TRUE_SCORES, "gained_accuracy", "gained_balanced_accuracy"]
    return [method_name(method), *(_mean(found.get(name)) for name in names)]


def _gains(data: Data) -> list[str]:
    """Return the paired intervals of each run against the source-only model of its seed."""
    lines = []
    for cell in cells(data):
        one = data["audit"]["cells"].get(cell["name"])
        gained = None if one is None else one["difference"]
        if gained:
            parts = [
                f"{name.replace('_', ' ')} {_signed(gained[name])}"
                for name in ("accuracy", "balanced_accuracy")
            ]
            lines.append(
                f"{cell['name']} minus source-only: {', '.join(parts)}"
                f" ({gained['interval']}-level, {gained['n']} images)"
            )
    return lines


def _estimates(data: Data) -> list[str]:
    return [name for name in ESTIMATES if f"estimate_{name}" in _columns(data)]


def _of(data: Data, method: str) -> list[Data]:
    return [cell for cell in cells(data) if cell["method"] == method]


def _mean(found: Mapping[str, Any] | None, digits: int = 3) -> str:
    if not found or found["mean"] is None:
        return "-"
    mean, sd = found["mean"], found["sd"]
    text = decimals(mean, digits)
    text = text if sd is None else f"{text} ±{decimals(sd, digits, beside=mean)}"
    return text.replace("\N{MINUS SIGN}", "-")


def _signed(score: Mapping[str, float | None]) -> str:
    value, low, high = (score[end] for end in ("value", "low", "high"))
    if value is None:
        return "-"
    ends = "" if low is None or high is None else f" ({low:+.3f} to {high:+.3f})"
    return f"{value:+.3f}{ends}"
