"""What a trained model leaves in its folder: prediction rule, model and predictions."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from daptkit.data import ImageTable
from daptkit.model import AdaptNet, StoredAlignment, save_model_folder
from daptkit.run import RunFolder, atomic_write
from daptkit.shift import CalibrationChoice, PredictionRule, fit_chosen_rule
from daptkit.train.crossfit import HeldOut
from daptkit.train.domains import Rows, TaskData
from daptkit.train.inference import SplitPasses, as_numpy
from daptkit.train.job import FitResult
from daptkit.train.prepare import Prepared
from daptkit.train.world import ALONE, World

Floats = npt.NDArray[np.float64]

_HELD_OUT = "held_out.safetensors"
"""Logits that a measuring of the finished run would have to train several models for."""

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
        source_logits: (N', K), of ``source_rows``.
        target_logits: (M, K) of every target row, in the order of the table.
        target_features: (M, D).
    """

    val_logits: Floats
    source_rows: Rows
    source_features: Floats
    source_logits: Floats
    target_logits: Floats
    target_features: Floats


@dataclass(frozen=True, kw_only=True)
class Delivered:
    """A delivered model: its passes over both domains, its prediction rule, how it was trained.

    Args:
        net: the trained model.
        passes: of the model over both domains.
        held_out: logits and labels that the rule was fitted on.
        rule: calibration, priors and decision rule.
        fit: what training left behind.
        choice: of the calibration; ``None`` for a model that was loaded, whose run recorded it.
        alignments: what methods do at prediction.
    """

    net: AdaptNet
    passes: Passes
    held_out: HeldOut
    rule: PredictionRule
    fit: FitResult
    choice: CalibrationChoice | None = None
    alignments: tuple[StoredAlignment, ...] = ()


def run_passes(passes: SplitPasses) -> Passes:
    """Collect one pass over the held-out source and one over the whole target.

    Args:
        passes: of the trained model, as it is delivered.

    Raises:
        ValueError: the passes are of a model in training.
    """
    data = passes.data
    val_logits, taps = passes.of("source_val")
    rows, logits, features = data.val_rows, val_logits, taps["features"]
    if len(rows) < ENOUGH_HELD_OUT:
        train_logits, train_taps = passes.of("source_train")
        rows = np.concatenate([data.train_rows, data.val_rows])
        logits = torch.cat([train_logits, logits])
        features = torch.cat([train_taps["features"], features])
    order = np.argsort(rows)
    target_logits, target_taps = passes.whole_target()
    return Passes(
        val_logits=as_numpy(val_logits),
        source_rows=rows[order],
        source_features=as_numpy(features)[order],
        source_logits=as_numpy(logits)[order],
        target_logits=as_numpy(target_logits),
        target_features=as_numpy(target_taps["features"]),
    )


def with_rule(
    net: AdaptNet,
    classes: tuple[str, ...],
    data: TaskData,
    passes: Passes,
    held_out: HeldOut,
    fit: FitResult,
    decide: str,
) -> Delivered:
    """Fit the prediction rule of a trained model on the held-out source.

    The calibration is the one whose likelihood on held-out patients is best.

    Args:
        net: the trained model.
        classes: names.
        data: both domains, for the patients of the source.
        passes: logits of both domains.
        held_out: logits and labels that the rule is fitted on.
        fit: class weights and target prior in force at the end of training.
        decide: ``--decide``.
    """
    rule, choice = fit_chosen_rule(
        held_out.logits,
        held_out.labels,
        as_numpy(fit.class_weights),
        None if fit.target_prior is None else as_numpy(fit.target_prior),
        decide,
        classes,
        groups=data.source.groups[held_out.rows(data)],
    )
    return Delivered(net=net, passes=passes, held_out=held_out, rule=rule, fit=fit, choice=choice)


def deliver(
    folder: RunFolder,
    model: Delivered,
    prepared: Prepared,
    meta: dict[str, Any],
    world: World = ALONE,
) -> None:
    """Write model folder and predictions.

    Args:
        folder: run folder, or the twin's.
        model: what is delivered there.
        prepared: data, classes and conversion.
        meta: provenance for ``model.json``.
        world: processes of the run; the first one writes.
    """
    rule = model.rule
    table = prepared.data.target.images.table

    def write() -> None:
        save_model_folder(
            folder.model,
            model.net,
            prepared.model_config,
            classes=prepared.classes,
            conversion=prepared.conversion.to_json(),
            rule=rule.to_json(),
            extra={**meta, "calibration_choice": model.choice and model.choice.to_json()},
            alignments=model.alignments,
        )
        predictions = predictions_csv(table, model.passes.target_logits, rule, "target")
        atomic_write(folder.predictions, predictions)
        if model.held_out.folds > 1:
            atomic_write(folder.root / _HELD_OUT, save(_arrays(model.held_out)))

    world.first(write)


def read_held_out(folder: RunFolder) -> HeldOut | None:
    """Return the cross-fitted logits that a run kept; ``None`` where it kept none, or damaged."""
    try:
        found = load((folder.root / _HELD_OUT).read_bytes())
        kept = HeldOut(found["logits"], found["labels"], int(found["folds"][0]))
    except (OSError, SafetensorError, LookupError):
        return None
    fits = kept.logits.ndim == 2 and kept.labels.shape == kept.logits.shape[:1]
    return kept if fits and np.isfinite(kept.logits).all() else None


def _arrays(held_out: HeldOut) -> dict[str, npt.NDArray[Any]]:
    folds = np.array([held_out.folds])
    return {"logits": held_out.logits, "labels": held_out.labels, "folds": folds}


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
