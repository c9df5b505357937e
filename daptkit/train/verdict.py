"""Did adapting help? What a finished run says of it without target labels, and what to deliver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.assess import Sample, Verdict, estimate_accuracy, judge, sample_under_rule
from daptkit.assess.accuracy.estimates import estimate_draws
from daptkit.assess.accuracy.heads import resampled_heads
from daptkit.shift import ShiftDiagnosis, diagnose_shift, feature_gap
from daptkit.shift.movedprior import drawn_patients
from daptkit.train.deliver import Delivered
from daptkit.train.domains import Domain
from daptkit.train.inference import as_numpy
from daptkit.train.prepare import Prepared
from daptkit.train.scratch import SCRATCH

PERMUTATIONS = 199
MAX_FOR_SHIFT = 1500
"""Images of a site, of whole patients, that a run diagnoses the shift on at most."""
N_BOOTSTRAP = 300

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The verdict of a run and what else was found out for it.

    Args:
        verdict: on the adapted model beside its source-only twin.
        diagnosis: of the shift, on the twin's features.
        estimates: model to its accuracy estimates, plain values.
        guard: whether the verdict decides what is delivered.
        raises_confidence: whether a method's loss raises confidence on the target.
    """

    verdict: Verdict
    diagnosis: ShiftDiagnosis
    estimates: dict[str, list[dict[str, Any]]]
    guard: bool
    raises_confidence: bool = False

    @property
    def delivers_twin(self) -> bool:
        """Whether the source-only model is delivered in place of the adapted one."""
        return self.guard and self.verdict.deliver == "source-only"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``run.json`` holds them."""
        return {
            **self.verdict.to_json(),
            "guard": self.guard,
            "raises_confidence": self.raises_confidence,
            "delivered": "source-only" if self.delivers_twin else "adapted",
            "shift": {
                "kind": self.diagnosis.kind,
                "reasons": list(self.diagnosis.reasons),
                "caveats": list(self.diagnosis.caveats),
            },
            "estimates": self.estimates,
        }


def judge_run(
    prepared: Prepared,
    twin: Delivered,
    adapted: Delivered,
    *,
    guard: bool,
    seed: int,
    diagnosis: ShiftDiagnosis | None = None,
    raises_confidence: bool = False,
    scratch: Delivered | None = None,
) -> Judgement:
    """Judge an adapted model beside its source-only twin; no target label is read.

    Args:
        prepared: data of the run.
        twin: the source-only model.
        adapted: the model of the methods.
        guard: ``--guard``.
        seed: of resampling.
        diagnosis: :func:`diagnose_twin`, where it was made before.
        raises_confidence: whether a method of the run declares that its loss raises confidence.
        scratch: the same network from random weights, where it was asked for: its estimates stand
            beside the others' and have no part in the verdict.
    """
    diagnosis = diagnosis or diagnose_twin(prepared, twin, seed)
    kind = diagnosis.kind
    models = {"source-only": twin, "adapted": adapted, **({SCRATCH: scratch} if scratch else {})}
    samples = {name: model_sample(prepared, m) for name, m in models.items()}
    heads = {name: linear_heads(prepared, m, seed) for name, m in models.items()}
    drawn = {
        name: estimate_draws(sample, target_heads=heads[name], n_bootstrap=N_BOOTSTRAP, seed=seed)
        for name, sample in samples.items()
    }
    prior, interval = adapted.fit.target_prior, adapted.fit.target_prior_interval
    trusted = interval if prior is not None else None
    verdict = judge(
        samples["source-only"],
        samples["adapted"],
        kind=kind,
        twin_heads=heads["source-only"],
        adapted_heads=heads["adapted"],
        prior_low=None if trusted is None else as_numpy(trusted[0]),
        prior_high=None if trusted is None else as_numpy(trusted[1]),
        feature_gap=_gap(prepared, twin, diagnosis, seed),
        raises_confidence=raises_confidence,
        classes=prepared.classes,
        n_bootstrap=N_BOOTSTRAP,
        seed=seed,
        drawn=(drawn["source-only"], drawn["adapted"]),
    )
    estimates = {
        name: [
            estimate.to_json()
            for estimate in estimate_accuracy(sample, kind=kind, drawn=drawn[name])
        ]
        for name, sample in samples.items()
    }
    return Judgement(
        verdict=verdict,
        diagnosis=diagnosis,
        estimates=estimates,
        guard=guard,
        raises_confidence=raises_confidence,
    )


def model_sample(prepared: Prepared, model: Delivered) -> Sample:
    """Return what a model says of the images that its rule was fitted on, and of the target."""
    data, held = prepared.data, model.held_out
    return sample_under_rule(
        model.rule,
        held.logits,
        held.labels,
        model.passes.target_logits[data.target_rows],
        source_groups=data.source.groups[held.rows(data)],
        target_groups=data.target.groups[data.target_rows],
    )


def diagnose_twin(prepared: Prepared, twin: Delivered, seed: int) -> ShiftDiagnosis:
    """Diagnose the shift on images of the source that the twin was not trained on.

    Of more than :data:`MAX_FOR_SHIFT` images of a site, those of whole patients drawn by ``seed``;
    the caveats say how many.
    """
    data, passes = prepared.data, twin.passes
    assert data.source.labels is not None
    source, target = data.source.groups, data.target.groups
    every_s, every_t = np.sort(data.val_rows), data.target_rows
    rows = every_s[drawn_patients(source[every_s], MAX_FOR_SHIFT, seed)]
    columns = every_t[drawn_patients(target[every_t], MAX_FOR_SHIFT, seed)]
    places = np.searchsorted(passes.source_rows, rows)
    found = diagnose_shift(
        passes.source_features[places],
        passes.source_logits[places],
        data.source.labels[rows],
        passes.target_features[columns],
        passes.target_logits[columns],
        source_groups=source[rows],
        target_groups=target[columns],
        permutations=PERMUTATIONS,
        seed=seed,
    )
    drawn = [
        f"The shift was diagnosed on {len(some)} of {len(every)} {name} images, those of"
        f" {len(np.unique(groups[some]))} {unit} drawn at random."
        for name, every, some, groups, unit in (
            ("held-out source", every_s, rows, source, _unit(data.source)),
            ("target", every_t, columns, target, _unit(data.target)),
        )
        if len(some) < len(every)
    ]
    return replace(found, caveats=(*found.caveats, *drawn)) if drawn else found


def _unit(domain: Domain) -> str:
    return "patients" if domain.images.table.patients_known else "images taken for patients"


def _gap(prepared: Prepared, twin: Delivered, diagnosis: ShiftDiagnosis, seed: int) -> float | None:
    if diagnosis.target_prior is None:
        return None
    data, passes = prepared.data, twin.passes
    if np.array_equal(passes.source_rows, np.sort(data.val_rows)):
        # The diagnosis has measured it, on the same images.
        return diagnosis.target_prior.feature_gap
    assert data.source.labels is not None
    return feature_gap(
        passes.source_features,
        data.source.labels[passes.source_rows],
        passes.target_features[data.target_rows],
        diagnosis.target_prior.estimate,
        source_groups=data.source.groups[passes.source_rows],
        target_groups=data.target.groups[data.target_rows],
        seed=seed,
    )


def linear_heads(prepared: Prepared, model: Delivered, seed: int) -> Classes | None:
    """Return the classes (H, M) that linear heads, each of other patients, give to the target.

    ``None`` where the source rows whose features are kept show fewer than two classes.
    """
    data, passes = prepared.data, model.passes
    assert data.source.labels is not None
    labels, groups = data.source.labels[passes.source_rows], data.source.groups[passes.source_rows]
    mean, deviation = passes.source_features.mean(axis=0), passes.source_features.std(axis=0)
    scale = np.where(deviation > 1e-9, deviation, 1.0)
    source = (passes.source_features - mean) / scale
    target = (passes.target_features[data.target_rows] - mean) / scale
    found = resampled_heads(source, labels, groups, (target,), np.random.default_rng(seed))
    return None if found is None else found[0]
