"""The cells of a comparison: one ordinary run for each method and seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daptkit.config import AdaptConfig, resolve_config
from daptkit.errors import DaptkitError, NonFiniteLossError, PluginError, UsageError
from daptkit.host import method_options, parse_method
from daptkit.run import RunFolder, writing
from daptkit.train.adaptation import check_continued
from daptkit.train.scoreset import load_score_set

SOURCE_ONLY = "none"
RUNS = "runs"
FORMAT = 1
"""Version of cell.json and compare.json."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a comparison.

    Args:
        method: as ``-m`` names it.
        config: options of the run.
    """

    method: str
    config: AdaptConfig

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return cell_name(self.method, self.config.seed)

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.config.out)

    @property
    def measures(self) -> Path:
        """What the comparison measured of the run; it is written last."""
        return self.folder.root / "cell.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a comparison is to run.

    Args:
        out: its folder.
        resume: whether it continues one.
        methods: the source-only model first.
        seeds: of the cells.
        cells: seed by seed, the source-only model of each first.
    """

    out: Path
    resume: bool
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that could not be finished.

    Args:
        cell: its name.
        reason: one line, for the terminal; it may hold paths.
        kind: what went wrong, without a path and without a plugin's words.
        exit_code: that ``daptkit adapt`` would have ended with.
    """

    cell: str
    reason: str
    kind: str
    exit_code: int


def cell_name(method: str, seed: int) -> str:
    """Return the name of a cell: ``coral+bbse-seed0``."""
    return f"{method}-seed{seed}"


def plan_cells(
    values: Mapping[str, Any], file: Path | None, methods: Sequence[str], seeds: int
) -> Plan:
    """Return the cells of a comparison; the source-only model is always among them.

    Args:
        values: fields of :class:`daptkit.config.AdaptConfig` that were given, but ``method``;
            ``out`` is the folder of the comparison. Options of methods under
            ``"method_options"`` are given to every cell that names the method.
        file: configuration in TOML, or ``None``.
        methods: as ``-m`` names them, at least one.
        seeds: number of seeds.

    Raises:
        UsageError: no method, one named twice or unknown, or options that cannot be.
        PluginError: a named plugin is broken.
    """
    named = _names(methods)
    if seeds < 1:
        raise UsageError(f"--seeds is at least 1, not {seeds}.")
    options = dict(values.get("method_options", {}))
    known = {part for method in named for part in parse_method(method)}
    for name in options:
        if name not in known:
            raise UsageError(f"there are options for method {name!r}, which -m does not name.")
    # A report takes as long as a short training, so it has to be asked for. What is compared are
    # the methods' own models, whatever the verdict on each would deliver in its place.
    common = {
        "report": False,
        **values,
        "guard": False,
        "method": SOURCE_ONLY,
        "method_options": {},
    }
    base = resolve_config(common, file, method_options, "compare")
    load_score_set(base.select, lambda _: None)
    every = (SOURCE_ONLY, *(name for name in named if name != SOURCE_ONLY))
    numbers = tuple(range(base.seed, base.seed + seeds))

    def cell(method: str, seed: int) -> Cell:
        given = {
            **common,
            "method": method,
            "method_options": {n: options[n] for n in parse_method(method) if n in options},
            "seed": seed,
            "out": str(Path(base.out) / RUNS / cell_name(method, seed)),
            "resume": True,
        }
        if method == SOURCE_ONLY:
            # The baseline is the model of the last epoch, and has nothing to be chosen from.
            given["select"] = "last"
        config = resolve_config(given, file, method_options, "compare")
        return Cell(method=method, config=config)

    return Plan(
        out=Path(base.out),
        resume=base.resume,
        methods=every,
        seeds=numbers,
        cells=tuple(cell(method, seed) for seed in numbers for method in every),
    )


def check_kept(cells: Sequence[Cell]) -> None:
    """Check that runs which are there already were started with the same options.

    Raises:
        UsageError: options of a run differ.
    """
    for cell in cells:
        try:
            check_continued(cell.folder, cell.config)
        except UsageError as error:
            raise UsageError(
                f"{str(error).partition(';')[0]}, in '{cell.name}'; give the options that the"
                " comparison was started with, or a new --out."
            ) from error


def read_measures(cell: Cell) -> dict[str, Any] | None:
    """Return what was measured of a finished run; ``None`` where it is not finished or damaged."""
    run = cell.folder
    if not (run.record.is_file() and (run.model / "model.json").is_file()):
        return None
    try:
        found = json.loads(cell.measures.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and found.get("format") == FORMAT
    return found if whole else None


def withdraw(cell: Cell) -> None:
    """Remove the folder of a run in which nothing was started, so that --out is as it was."""
    root = cell.folder.root
    with writing(root):
        if root.is_dir() and not any(entry.name != ".lock" for entry in root.iterdir()):
            (root / ".lock").unlink(missing_ok=True)
            root.rmdir()
            if not any(root.parent.iterdir()):
                root.parent.rmdir()


def failure_of(cell: Cell, error: Exception) -> Failure:
    """Return what is told, and what is written, of an error that ended a cell."""
    text = " ".join(str(error).split())
    if isinstance(error, NonFiniteLossError):
        # Names a loss and a step, nothing else.
        return Failure(cell=cell.name, reason=text, kind=text.partition(";")[0], exit_code=1)
    if isinstance(error, PluginError):
        kind = f"fault of a plugin (-m {cell.method})"
    elif isinstance(error, DaptkitError):
        kind = {2: "options that cannot work", 3: "data that cannot be used"}.get(
            error.exit_code, "failure"
        )
    else:
        text = kind = f"internal error: {type(error).__name__}"
        if str(error):
            text = f"{kind}: {' '.join(str(error).split())}"
    code = error.exit_code if isinstance(error, DaptkitError) else 1
    return Failure(cell=cell.name, reason=text, kind=kind, exit_code=code)


def _names(methods: Sequence[str]) -> list[str]:
    """Return the methods as one name each.

    Raises:
        UsageError: none, or one twice; ``a+b`` and ``b+a`` are the same.
    """
    if isinstance(methods, str):
        methods = [methods]
    if not methods:
        raise UsageError("-m is missing; name each method to compare, as in -m none -m dann.")
    named: dict[tuple[str, ...], str] = {}
    for method in methods:
        parts = parse_method(method)
        key, name = tuple(sorted(parts)), "+".join(parts) or SOURCE_ONLY
        if key in named:
            same = "" if named[key] == name else f", as {named[key]}"
            raise UsageError(f"-m {name} is named twice{same}; compare takes each method once.")
        named[key] = name
    return list(named.values())
