"""True scores of the cells of a comparison, where somebody has labelled target images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from daptkit.config import AdaptConfig
from daptkit.data import choose_split, encode_labels, read_table
from daptkit.recipes.cells import SOURCE_ONLY, Cell, cell_name
from daptkit.recipes.evaluating import TRUE_SCORES as SCORES
from daptkit.recipes.evaluating import Labelled, predict_labelled
from daptkit.run import RunFolder
from daptkit.train.plugins import parse_reader_options, plugin_readers
from daptkit.train.progress import Reporter, SilentReporter
from daptkit.train.scratch import SCRATCH

N_BOOTSTRAP = 1000


def check_target_labels(path: str, config: AdaptConfig, classes: Sequence[str] | None) -> None:
    """Look at the labelled images before anything is trained; no model is run.

    Args:
        path: ``--target-labels``.
        config: options of a cell, for the readers.
        classes: names that the source has; ``None`` while they are not known.

    Raises:
        DataError: there are no images or no labels, or a class that the source does not have.
    """
    silent = SilentReporter()
    readers = plugin_readers(silent.line, parse_reader_options(config.reader_options))
    table = read_table(
        path, domain="labelled target", labelled=True, log=silent.line, readers=readers
    )
    table = table.select(choose_split(table, None, "test"))
    encode_labels(table, sorted(set(table.labels or ())) if classes is None else classes)


def audit_cells(
    cells: Sequence[Cell], path: str, *, n_bootstrap: int = N_BOOTSTRAP, reporter: Reporter
) -> dict[str, Any]:
    """Score the delivered models of finished cells on labelled target images.

    Each seed's cells are compared with its source-only model on the same images: paired intervals
    of whole patients. Nothing else of a comparison reads these numbers.

    Args:
        cells: finished ones.
        path: ``--target-labels``.
        n_bootstrap: resamples of each interval.
        reporter: where progress goes.

    Returns:
        Cell to ``n``, ``interval``, ``accuracy``, ``balanced_accuracy``, ``auroc`` (each ``value``,
        ``low``, ``high``) and ``difference`` to the source-only model of the seed, ``None`` where
        that is not there. So too, of a seed with ``--from-scratch``, the network from random
        weights, as ``from-scratch-seedN``.

    Raises:
        DataError: labels or images that cannot be used.
    """
    found: dict[str, Any] = {}
    for seed in dict.fromkeys(cell.config.seed for cell in cells):
        twin: Labelled | None = None
        for cell in (cell for cell in cells if cell.config.seed == seed):
            labelled = _predict(cell.folder, cell.name, cell.config, path, reporter)
            if cell.method == SOURCE_ONLY:
                twin = labelled
            found[cell.name] = _scores(
                labelled, None if cell.method == SOURCE_ONLY else twin, n_bootstrap, seed
            )
            if cell.method == SOURCE_ONLY and cell.config.from_scratch:
                name = cell_name(SCRATCH, seed)
                scratch = _predict(cell.folder.scratch, name, cell.config, path, reporter)
                found[name] = _scores(scratch, twin, n_bootstrap, seed)
    return found


def _scores(own: Labelled, twin: Labelled | None, n_bootstrap: int, seed: int) -> dict[str, Any]:
    scores = own.scores(n_bootstrap, seed)
    return {
        **{name: scores[name] for name in ("n", "interval", "absent", *SCORES)},
        "difference": None if twin is None else own.gained_over(twin, n_bootstrap, seed),
    }


def _predict(
    folder: RunFolder, name: str, config: AdaptConfig, path: str, reporter: Reporter
) -> Labelled:
    # Every cell would say the same of the images again.
    quiet = SilentReporter()
    reporter.line(f"{name}: scoring it with --target-labels")
    return predict_labelled(
        folder.root,
        Path(path),
        split=None,
        domain="target",
        aggregate=None,
        device=config.device,
        workers=config.workers,
        skip_unreadable=config.skip_unreadable,
        cache=config.cache,
        reporter=quiet,
        # The cells of a frozen comparison differ in what comes after the backbone.
        shared_trunk=config.finetune == "frozen",
    )
