"""What a trained model leaves in its folder: prediction rule, model and predictions."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.data import ImageTable
from daptkit.model import AdaptNet, save_model_folder
from daptkit.run import RunFolder, atomic_write
from daptkit.shift import PredictionRule, fit_rule
from daptkit.train.device import Precision
from daptkit.train.domains import Rows
from daptkit.train.inference import all_rows, as_numpy, forward_rows
from daptkit.train.job import FitResult
from daptkit.train.prepare import Prepared

Floats = npt.NDArray[np.float64]


ENOUGH_HELD_OUT = 100
"""Held-out source images from which on divergences are measured on those alone."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """One pass of a model over the held-out source and the whole target.

    Args:
        val_logits: (N, K) of the source's held-out images.
        source_rows: rows of the source whose features are kept: the held-out ones, or all where
            fewer than :data:`ENOUGH_HELD_OUT` are held out.
        source_features: (N', D), of ``source_rows``.
        target_logits: (M, K) of every target row, in the order of the table.
        target_features: (M, D).
    """

    val_logits: Floats
    source_rows: Rows
    source_features: Floats
    target_logits: Floats
    target_features: Floats


@dataclass(frozen=True)
class HeldOut:
    """Logits (N, K) of source images that the model behind each of them never saw, and labels."""

    logits: Floats
    labels: Rows
    folds: int


def run_passes(net: AdaptNet, prepared: Prepared, precision: Precision) -> Passes:
    """Run a model once over the held-out source and once over the whole target."""
    data = prepared.data
    val_logits, taps = forward_rows(net, data.source, data.val_rows, precision=precision)
    rows = data.val_rows
    if len(rows) < ENOUGH_HELD_OUT:
        rows = np.sort(np.concatenate([data.train_rows, data.val_rows]))
        _, taps = forward_rows(net, data.source, rows, precision=precision)
    everything = all_rows(data.target)
    target_logits, target_taps = forward_rows(net, data.target, everything, precision=precision)
    return Passes(
        val_logits=as_numpy(val_logits),
        source_rows=rows,
        source_features=as_numpy(taps["features"]),
        target_logits=as_numpy(target_logits),
        target_features=as_numpy(target_taps["features"]),
    )


def deliver(
    folder: RunFolder,
    net: AdaptNet,
    prepared: Prepared,
    passes: Passes,
    held_out: HeldOut,
    fit: FitResult,
    decide: str,
    meta: dict[str, Any],
) -> PredictionRule:
    """Fit the prediction rule on the held-out source and write model folder and predictions.

    Args:
        folder: run folder, or the twin's.
        net: the trained model.
        prepared: data, classes and conversion.
        passes: logits of both domains.
        held_out: logits and labels that the rule is fitted on.
        fit: class weights and target prior in force at the end of training.
        decide: ``--decide``.
        meta: provenance for ``model.json``.
    """
    rule = fit_rule(
        held_out.logits,
        held_out.labels,
        as_numpy(fit.class_weights),
        None if fit.target_prior is None else as_numpy(fit.target_prior),
        decide,
        prepared.classes,
    )
    save_model_folder(
        folder.model,
        net,
        prepared.model_config,
        classes=prepared.classes,
        conversion=prepared.conversion.to_json(),
        rule=rule.to_json(),
        extra=meta,
    )
    write_predictions(folder, prepared.data.target.images.table, passes.target_logits, rule)
    return rule


def write_predictions(
    folder: RunFolder, table: ImageTable, logits: Floats, rule: PredictionRule
) -> None:
    """Write ``predictions.csv`` of every target row."""
    atomic_write(folder.predictions, predictions_csv(table, logits, rule, "target"))


def predictions_csv(table: ImageTable, logits: Floats, rule: PredictionRule, domain: str) -> str:
    """Return a CSV: path, split, one probability a class, prediction and confidence.

    Args:
        table: rows, in the order of ``logits``.
        logits: (N, K).
        rule: calibration, priors and decision rule.
        domain: ``"target"`` or ``"source"``.
    """
    posterior = rule.posterior(logits, domain)
    predicted = rule.predict(logits, domain)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["path", "split", *(f"p_{name}" for name in rule.classes), "prediction", "confidence"]
    )
    for name, split, row, label in zip(
        table.names, table.splits, posterior, predicted, strict=True
    ):
        probabilities = [f"{value:.6g}" for value in row]
        writer.writerow([name, split, *probabilities, rule.classes[label], f"{row[label]:.6g}"])
    return out.getvalue()
