"""Several methods and seeds on the same data: one ordinary run for each, and one comparison."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daptkit.errors import DaptkitError, DataError, PluginError, Terminated, UsageError
from daptkit.recipes.adapting import train_and_report
from daptkit.recipes.cell_audit import audit_cells, check_target_labels
from daptkit.recipes.cell_measures import SeedShift, measure_cell, seed_shift
from daptkit.recipes.cell_scratch import measure_scratch
from daptkit.recipes.cells import (
    FORMAT,
    RUNS,
    SOURCE_ONLY,
    Cell,
    Failure,
    Plan,
    cell_name,
    check_kept,
    failure_of,
    plan_cells,
    read_measures,
    withdraw,
)
from daptkit.recipes.comparison_data import comparison_data
from daptkit.recipes.comparison_text import csv_text, summary_text
from daptkit.report.comparison import comparison_page
from daptkit.run import RunFolder, atomic_write, write_json
from daptkit.train.progress import Reporter, SilentReporter

JSON, CSV, PAGE = "compare.json", "compare.csv", "compare.html"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison delivers.

    Args:
        out: its folder.
        summary: tables and the recommendation as text.
        data: what ``compare.json`` holds.
        failures: cells that could not be finished, with their reasons.
    """

    out: Path
    summary: str
    data: dict[str, Any]
    failures: tuple[Failure, ...]

    @property
    def error(self) -> DaptkitError | None:
        """What the command ends with where cells failed; ``None`` where none did.

        A :class:`PluginError` (exit code 4) where every failure is a fault of a plugin, else a
        :class:`DaptkitError` (exit code 1).
        """
        if not self.failures:
            return None
        faults = all(one.exit_code == PluginError.exit_code for one in self.failures)
        kind = PluginError if faults else DaptkitError
        n, of = len(self.failures), len(self.data["cells"])
        return kind(
            f"{n} of {of} runs failed: {', '.join(one.cell for one in self.failures)}. The others"
            " are kept; --resume tries the failed ones again."
        )


def compare(
    methods: Sequence[str],
    *,
    seeds: int = 3,
    target_labels: str | Path | None = None,
    file: str | Path | None = None,
    reporter: Reporter | None = None,
    **values: Any,
) -> Comparison:
    """Compare methods over several seeds on the same images, splits and options.

    Every pair of a method and a seed is an ordinary run of :func:`daptkit.adapt`, in
    ``out/runs/METHOD-seedN``; the source-only model (``none``) is always among them and is trained
    once a seed. Written are ``compare.json``, ``compare.csv`` and ``compare.html``. Which method is
    recommended follows from label-free scores alone: vetoes first, then a combined rank
    (:func:`daptkit.recipes.cell_choice.combine`).

    With ``resume=True`` finished runs are kept, an unfinished one continues from its checkpoint,
    failed ones are tried again; methods and seeds may be added.

    Args:
        methods: such as ``["dann", "coral+bbse"]``.
        seeds: number of seeds: ``seed``, ``seed + 1`` and so on.
        target_labels: PATH of labelled target images; true scores with paired intervals against
            source-only then stand apart. They are checked for
            unknown classes at the start, scored last, and choose nothing.
        file: configuration in TOML, such as a run's ``run.toml``; ``values`` win over it.
        reporter: where progress goes; nowhere by default.
        **values: fields of :class:`daptkit.config.AdaptConfig` but ``method``; ``out`` is the
            folder of the comparison, ``report=True`` writes the report of every run too. Options of
            a method, ``method_options={"dann": {"weight": 0.5}}``, are those of every run with it.

    Returns:
        The folder, the closing summary, the content of ``compare.json``, and the runs that failed:
        one that fails costs the others nothing.

    Raises:
        UsageError: options that cannot work, an unknown method, one named twice, or ``out`` in use.
        DataError: data that cannot be used. PluginError: a named plugin is broken from the start.
        DaptkitError: the results cannot be written.
    """
    report = reporter or SilentReporter()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("compare runs in one process; start it without torchrun.")
    plan = plan_cells(values, Path(file) if file else None, methods, seeds)
    labels = None if target_labels is None else str(target_labels)
    folder = RunFolder(plan.out)
    folder.open_for_writing(resume=plan.resume)
    with folder.locked():
        _check_place(plan)
        check_kept(plan.cells)
        if labels is not None:
            check_target_labels(labels, plan.cells[0].config, None)
        measured, failures = _run_cells(plan, labels, report)
        _check_same_data(measured)
        data = comparison_data(plan, measured, failures)
        result = _write(plan, data, failures)
        if labels is None or not measured:
            return result
        done = [cell for cell in plan.cells if cell.name in measured]
        audit = audit_cells(done, labels, reporter=report)
        return _write(plan, comparison_data(plan, measured, failures, audit), failures)


def _check_place(plan: Plan) -> None:
    """Refuse to continue a folder that holds something else.

    Raises:
        UsageError: it does.
    """
    known = {".lock", RUNS, JSON, CSV, PAGE}
    # Unfinished versions of a file, which a killed process leaves, begin with a dot.
    others = [e.name for e in plan.out.iterdir() if e.name not in known and e.name[0] != "."]
    if others:
        raise UsageError(
            f"--out '{plan.out}' is not the folder of a comparison: it holds '{min(others)}';"
            " name another one."
        )


def _run_cells(
    plan: Plan, labels: str | None, reporter: Reporter
) -> tuple[dict[str, dict[str, Any]], tuple[Failure, ...]]:
    """Run what is not finished; return the measures by cell, and the failures."""
    measured: dict[str, dict[str, Any]] = {}
    failures: list[Failure] = []
    without_twin: set[int] = set()
    for number, cell in enumerate(plan.cells, start=1):
        seed = cell.config.seed
        if seed in without_twin:
            reason = "not started: the source-only model of its seed failed"
            failures.append(Failure(cell=cell.name, reason=reason, kind=reason, exit_code=1))
            continue
        twin = measured.get(cell_name(SOURCE_ONLY, seed))
        try:
            found = read_measures(cell)
            state = "kept" if found else "starting"
            reporter.line(f"run {number} of {len(plan.cells)}, {cell.name}: {state}")
            measured[cell.name] = found or _run_cell(cell, twin, reporter)
        except Terminated:
            raise
        except Exception as error:
            if cell.method == SOURCE_ONLY and isinstance(error, (UsageError, DataError)):
                # What is wrong with the data or the options is wrong for every run.
                withdraw(cell)
                raise
            failures.append(failure_of(cell, error))
            reporter.line(f"{cell.name} failed: {failures[-1].reason}")
            if cell.method == SOURCE_ONLY:
                without_twin.add(seed)
            continue
        if labels is not None and len(measured) == 1:
            # A class that the source does not have is told now, and not after every run.
            check_target_labels(labels, cell.config, measured[cell.name]["data"]["classes"])
    return measured, tuple(failures)


def _run_cell(cell: Cell, twin: dict[str, Any] | None, reporter: Reporter) -> dict[str, Any]:
    continued = cell.folder.checkpoints.is_dir()
    trained = train_and_report(cell.config, reporter)
    shift = seed_shift(trained) if twin is None else SeedShift.from_json(twin["shift"])
    found = {
        "format": FORMAT,
        "method": cell.method,
        "seed": cell.config.seed,
        "continued": continued,
        "shift": shift.to_json(),
        **measure_cell(trained, shift),
        "from_scratch": measure_scratch(trained, shift),
    }
    write_json(cell.measures, found)
    return found


def _check_same_data(measured: dict[str, dict[str, Any]]) -> None:
    """Refuse to compare runs on other images than each other's.

    Raises:
        DataError: images or labels changed between two runs.
    """
    first, *others = measured or ("",)
    for name in others:
        if measured[name]["data"]["sha256"] != measured[first]["data"]["sha256"]:
            raise DataError(
                f"images or labels have changed since '{first}' was run: '{name}' was run on"
                " others. Start again in a new --out."
            )


def _write(plan: Plan, data: dict[str, Any], failures: tuple[Failure, ...]) -> Comparison:
    write_json(plan.out / JSON, data)
    atomic_write(plan.out / CSV, csv_text(data))
    atomic_write(plan.out / PAGE, comparison_page(data))
    return Comparison(
        out=plan.out,
        summary=summary_text(data, {one.cell: one.reason for one in failures}),
        data=data,
        failures=failures,
    )
