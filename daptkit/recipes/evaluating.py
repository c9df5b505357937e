"""Scores of a run against labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.assess import audit_difference
from daptkit.assess.metrics import score
from daptkit.data import (
    choose_split,
    encode_labels,
    warn_default_split,
    warn_unknown_patients,
)
from daptkit.errors import DataError
from daptkit.recipes.aggregation import find_units, unit_labels, unit_probabilities
from daptkit.recipes.inference import load_run, read_images, run_model
from daptkit.run import RunFolder
from daptkit.train.progress import Reporter, SilentReporter

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    domain: str = "target",
    aggregate: str | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    skip_unreadable: int = 0,
    cache: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Score the model of a run on labelled images.

    Args:
        run: run folder, or a model folder.
        data: PATH of labelled images.
        split: split to score; ``test`` where it exists, else everything; ``"all"`` for everything.
        domain: ``"target"`` or ``"source"``: selects the prior, and what methods make of images.
        aggregate: ``"patient"`` or ``"study"``: score the mean probabilities of each, not images.
        n_bootstrap: resamples behind each interval.
        seed: seed of the resampling.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        skip_unreadable: tolerate and list up to this many unreadable images.
        cache: folder of decoded images, ``"off"``, or ``None`` for the user's cache.
        reporter: where progress goes.

    Returns:
        ``{"n": ..., "accuracy": {"value": ..., "low": ..., "high": ...}, ...}``; see
        :func:`daptkit.assess.metrics.score`. Of a run with ``--from-scratch`` also
        ``"from_scratch"``: accuracy, balanced accuracy and AUROC of the network from random
        weights, and under ``"difference"`` what the run's model has gained over it, paired.

    Raises:
        DataError: labels or images that cannot be used, or a patient or study of several classes.
    """
    given: dict[str, Any] = {
        "split": split,
        "domain": domain,
        "aggregate": aggregate,
        "device": device,
        "workers": workers,
        "skip_unreadable": skip_unreadable,
        "cache": cache,
    }
    found = predict_labelled(run, data, **given, reporter=reporter or SilentReporter())
    scores = {"unit": aggregate or "image", **found.scores(n_bootstrap, seed)}
    scratch = RunFolder(run).scratch
    if scratch.model.is_dir():
        # What is to be told of the images has been told.
        before = predict_labelled(scratch.root, data, **given, reporter=SilentReporter())
        own = before.scores(n_bootstrap, seed)
        gained = found.gained_over(before, n_bootstrap, seed)
        scores["from_scratch"] = {
            **{name: own[name] for name in TRUE_SCORES},
            "difference": {name: gained[name] for name in ("accuracy", "balanced_accuracy")},
        }
    return scores


TRUE_SCORES = ("accuracy", "balanced_accuracy", "auroc")
"""Those that stand for a model beside another one."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labelled images, or patients or studies, and what a model says of them.

    Args:
        classes: K class names.
        labels: (N,) true class indices.
        posterior: (N, K) probabilities.
        predicted: (N,) most probable classes.
        balanced: (N,) classes under the balanced rule.
        groups: (N,) patient numbers.
        patients_known: whether every image names its patient.
        aggregate: ``"patient"`` or ``"study"`` where a row is one of these.
    """

    classes: tuple[str, ...]
    labels: Ints
    posterior: Floats
    predicted: Ints
    balanced: Ints
    groups: Ints
    patients_known: bool
    aggregate: str | None

    def scores(self, n_bootstrap: int, seed: int) -> dict[str, Any]:
        """Return the scores; see :func:`daptkit.assess.metrics.score`."""
        scores = score(
            self.posterior,
            self.labels,
            self.predicted,
            self.balanced,
            self.classes,
            groups=self.groups,
            patients_known=self.patients_known,
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
        if self.aggregate is not None and not self.patients_known:
            scores["interval"] = self.aggregate
        return scores

    def gained_over(self, before: Labelled, n_bootstrap: int, seed: int) -> dict[str, Any]:
        """Return what is gained over another model; see :func:`daptkit.assess.audit_difference`.

        Raises:
            DataError: the other one has seen other images.
        """
        if not np.array_equal(before.labels, self.labels):
            raise DataError("the labelled images changed while they were scored.")
        return audit_difference(
            self.labels,
            before.predicted,
            self.predicted,
            balanced_before=before.balanced,
            balanced_after=self.balanced,
            groups=self.groups,
            patients_known=self.patients_known,
            n_bootstrap=n_bootstrap,
            seed=seed,
        )


def predict_labelled(
    run: str | Path,
    data: str | Path,
    *,
    split: str | None,
    domain: str,
    aggregate: str | None,
    device: str,
    workers: int | None,
    skip_unreadable: int,
    cache: str | None,
    reporter: Reporter,
    shared_trunk: bool = False,
) -> Labelled:
    """Run the model of a run over labelled images; the arguments are those of :func:`evaluate`.

    With ``shared_trunk`` the backbone's features are kept, for the next model that has the same.

    Raises:
        DataError: labels or images that cannot be used, or a patient or study of several classes.
    """
    loaded, rule = load_run(run, domain)
    table, readers = read_images(loaded, data, domain=domain, labelled=True, reporter=reporter)
    warn_default_split(table, split, "test", "--split", reporter.line)
    table = table.select(choose_split(table, split, "test"))
    warn_unknown_patients(table, reporter.line)
    # An unknown class or a missing id is an error before anything is decoded.
    labels = encode_labels(table, rule.classes)
    if aggregate is not None:
        unit_labels(find_units(table, aggregate), labels, rule.classes)
    table, logits = run_model(
        loaded,
        table,
        readers,
        domain=domain,
        device=device,
        workers=workers,
        skip_unreadable=skip_unreadable,
        cache=cache,
        reporter=reporter,
        shared_trunk=shared_trunk,
    )
    labels, groups = encode_labels(table, rule.classes), table.groups()
    posterior, balanced = rule.posterior(logits, domain), rule.balanced_posterior(logits)
    if aggregate is not None:
        units = find_units(table, aggregate)
        labels, groups = unit_labels(units, labels, rule.classes), groups[units.first]
        means = unit_probabilities(units, logits, rule, domain)
        posterior, balanced = means.posterior, means.balanced
    return Labelled(
        classes=rule.classes,
        labels=labels,
        posterior=posterior,
        predicted=rule.choose(posterior, balanced, "map"),
        balanced=rule.choose(posterior, balanced, "balanced"),
        groups=groups,
        patients_known=table.patients_known,
        aggregate=aggregate,
    )
