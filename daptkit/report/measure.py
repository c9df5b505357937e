"""Everything that the report shows of a run, measured from its models and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daptkit.assess.metrics import score
from daptkit.assess.reliability import reliability_curve
from daptkit.assess.summary import collapse_check
from daptkit.report.embedder import Embedder
from daptkit.report.embedding import (
    MAX_PER_DOMAIN,
    EmbeddedPoint,
    Floats,
    Projection,
    sample_rows,
)
from daptkit.report.finished import FORMAT
from daptkit.report.levels import image_levels
from daptkit.report.provenance import data_facts, run_facts, sites_of
from daptkit.report.series import training_series
from daptkit.report.stages import stage_divergences
from daptkit.shift import Calibration
from daptkit.train.adaptation import Trained
from daptkit.train.deliver import Delivered
from daptkit.train.domains import Rows

SOURCE_ONLY, ADAPTED = "source-only", "adapted"
N_BOOTSTRAP = 500


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What ``report.json`` and ``embedding.csv`` will hold."""

    data: dict[str, Any]
    points: list[EmbeddedPoint]


def measure_run(
    trained: Trained, embedder: Embedder, true_scores: Mapping[str, Any] | None = None
) -> Measured:
    """Measure a finished run; no target label is read and no path or id is returned.

    Args:
        trained: the run.
        embedder: computes the embedding meanwhile.
        true_scores: ``{"why", "scores": {model: score}}`` where the target's labels are known.
    """
    models = models_of(trained)
    shown = _Shown.of(trained)
    pending = embedder.embed([shown.features(model) for model in models.values()], shown.seed)
    figures = trained.record["figures"]
    data = {
        "format": FORMAT,
        "models": list(models),
        "run": run_facts(trained),
        "data": data_facts(trained),
        "divergence": figures["divergence"],
        "stages": stage_divergences(trained),
        "images": image_levels(trained),
        "prior": figures["prior"],
        "predicted": {name: _predicted(trained, model) for name, model in models.items()},
        "collapse": figures["collapse"],
        "notes": figures["notes"],
        "method_reports": trained.record["methods"],
        "training": _training(trained),
        "source_validation": {name: _validation(trained, m) for name, m in models.items()},
        "verdict": trained.record.get("verdict"),
        "forgotten": figures.get("forgotten"),
        "selection": figures.get("selection"),
        "from_scratch": None if trained.scratch is None else _validation(trained, trained.scratch),
        "source_validation_by_site": _by_site(trained, models),
        "calibration": {
            name: _calibration(model) | {"choice": figures.get("calibration", {}).get(name)}
            for name, model in models.items()
        },
        "true_scores": None if true_scores is None else dict(true_scores),
    }
    projection = pending.result()
    data["embedding"] = shown.facts(trained, projection)
    return Measured(data=data, points=shown.points(trained, models, projection))


def models_of(trained: Trained) -> dict[str, Delivered]:
    """Return the models of a run by name: source-only, and adapted where there is one."""
    if trained.adapted is None:
        return {SOURCE_ONLY: trained.twin}
    return {SOURCE_ONLY: trained.twin, ADAPTED: trained.adapted}


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """Rows of each domain whose images are plotted, the same for every model."""

    source: Rows
    target: Rows
    seed: int

    @classmethod
    def of(cls, trained: Trained) -> _Shown:
        seed = trained.config.seed
        return cls(
            source=sample_rows(trained.twin.passes.source_rows, MAX_PER_DOMAIN, seed),
            target=sample_rows(trained.prepared.data.target_rows, MAX_PER_DOMAIN, seed),
            seed=seed,
        )

    def features(self, model: Delivered) -> Floats:
        """Return the features (N, D) of source, then target."""
        passes = model.passes
        inside = np.searchsorted(passes.source_rows, self.source)
        return np.concatenate([passes.source_features[inside], passes.target_features[self.target]])

    def facts(self, trained: Trained, projection: Projection) -> dict[str, Any]:
        """Return how the embedding was made."""
        return {
            "kind": projection.kind,
            "why_pca": projection.why_pca,
            "seed": self.seed,
            "shown": {"source": len(self.source), "target": len(self.target)},
            "of": {
                "source": len(trained.twin.passes.source_rows),
                "target": len(trained.prepared.data.target_rows),
            },
            "dims": int(trained.twin.passes.source_features.shape[1]),
        }

    def points(
        self, trained: Trained, models: Mapping[str, Delivered], projection: Projection
    ) -> list[EmbeddedPoint]:
        """Return one point per image and model, source before target."""
        classes, labels = trained.prepared.classes, trained.prepared.data.source.labels
        assert labels is not None
        found = []
        for (name, model), panel in zip(models.items(), projection.panels, strict=True):
            predicted = model.rule.predict(model.passes.target_logits[self.target])
            parts = (
                ("source", self.source, labels[self.source], "label"),
                ("target", self.target, predicted, "predicted"),
            )
            places = iter(panel.tolist())
            for domain, rows, numbers, kind in parts:
                for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
                    x, y = next(places)
                    found.append(
                        EmbeddedPoint(
                            model=name,
                            domain=domain,
                            row=row,
                            class_name=classes[number],
                            class_is=kind,
                            x=x,
                            y=y,
                        )
                    )
        return found


def _predicted(trained: Trained, model: Delivered) -> dict[str, float]:
    logits = model.passes.target_logits[trained.prepared.data.target_rows]
    return dict(collapse_check(model.rule.predict(logits), trained.prepared.classes).fractions)


def _training(trained: Trained) -> dict[str, Any]:
    if trained.adapted is None:
        return {SOURCE_ONLY: training_series(trained.folder.metrics)}
    return {
        SOURCE_ONLY: training_series(trained.folder.twin.metrics),
        ADAPTED: training_series(trained.folder.metrics),
    }


def _validation(
    trained: Trained,
    model: Delivered,
    inside: Rows | slice = slice(None),
    n_bootstrap: int = N_BOOTSTRAP,
) -> dict[str, Any]:
    """Score the held-out source images, or those at ``inside`` of them."""
    data = trained.prepared.data
    assert data.source.labels is not None
    rows, logits, rule = data.val_rows[inside], model.passes.val_logits[inside], model.rule
    return score(
        rule.posterior(logits, "source"),
        data.source.labels[rows],
        rule.predict(logits, "source", "map"),
        rule.predict(logits, "source", "balanced"),
        rule.classes,
        groups=data.source.groups[rows],
        patients_known=data.source.images.table.patients_known,
        n_bootstrap=n_bootstrap,
        seed=trained.config.seed,
    )


def _by_site(trained: Trained, models: Mapping[str, Delivered]) -> dict[str, Any]:
    sites = sites_of(trained.prepared.data.source, trained.prepared.data.val_rows)
    names = sorted(set(sites or ()))
    if len(names) < 2:
        return {}
    members = {name: np.flatnonzero(np.array(sites) == name) for name in names}
    return {
        model_name: {
            name: _site_score(_validation(trained, model, inside, 0))
            for name, inside in members.items()
        }
        for model_name, model in models.items()
    }


def _site_score(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "n": scores["n"],
        "accuracy": scores["accuracy"]["value"],
        "balanced_accuracy": scores["balanced_accuracy"]["value"],
    }


def _calibration(model: Delivered) -> dict[str, Any]:
    """Compare the source's probabilities with and without calibration on the held-out images."""
    logits, labels = model.held_out.logits, model.held_out.labels
    plain = replace(model.rule, calibration=Calibration.identity(len(model.rule.classes)))
    return {
        "n": len(labels),
        "cross_fitted": model.held_out.folds > 1,
        "calibrated": reliability_curve(model.rule.posterior(logits, "source"), labels),
        "uncalibrated": reliability_curve(plain.posterior(logits, "source"), labels),
    }
