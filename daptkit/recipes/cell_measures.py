"""What a comparison measures of one finished run while its models are in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daptkit.assess import ScoreInputs, estimate_accuracy, score_inputs
from daptkit.assess.scores import source_accuracy, veto
from daptkit.assess.verdict import CANNOT_KNOW, HURT, NO_EVIDENCE
from daptkit.report.provenance import options_shown
from daptkit.shift.arrays import FloatArray
from daptkit.train.adaptation import Trained
from daptkit.train.deliver import Delivered
from daptkit.train.prepare import Prepared
from daptkit.train.selection import trusted_prior
from daptkit.train.verdict import N_BOOTSTRAP, diagnose_twin, linear_heads, model_sample

_WITHHELD = {
    HURT: "adapting was judged to hurt",
    CANNOT_KNOW: "whether adapting helped cannot be known",
    NO_EVIDENCE: "more changes than the source-only model has wrong, for want of evidence",
}

Ends = tuple[FloatArray, FloatArray, FloatArray]


@dataclass(frozen=True, kw_only=True)
class SeedShift:
    """What the source-only model of a seed says of the shift; the same for every method of it.

    Args:
        kind: diagnosed kind of shift.
        reasons: why, one sentence for each question.
        prior: (K,) target prior, its lower and its upper ends; ``None`` where it is not trusted.
    """

    kind: str
    reasons: tuple[str, ...]
    prior: Ends | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        prior = None if self.prior is None else [part.tolist() for part in self.prior]
        return {"kind": self.kind, "reasons": list(self.reasons), "prior": prior}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SeedShift:
        """Read what :meth:`to_json` wrote."""
        prior = data["prior"]
        p, low, high = prior or (None, None, None)
        return cls(
            kind=data["kind"],
            reasons=tuple(data["reasons"]),
            prior=None if prior is None else (np.array(p), np.array(low), np.array(high)),
        )


def seed_shift(trained: Trained) -> SeedShift:
    """Diagnose the shift by the source-only model of a run.

    Args:
        trained: the run.
    """
    found = diagnose_twin(trained.prepared, trained.twin, trained.config.seed)
    prior = trusted_prior(found)
    return SeedShift(
        kind=found.kind,
        reasons=tuple(found.reasons),
        prior=None if prior is None else (prior.estimate, prior.low, prior.high),
    )


def measure_cell(trained: Trained, shift: SeedShift) -> dict[str, Any]:
    """Return everything that a comparison shows of a run; no target label is read.

    Args:
        trained: the run, its models in memory.
        shift: of its seed.
    """
    prepared, record, seed = trained.prepared, trained.record, trained.config.seed
    final = trained.adapted or trained.twin
    name = "adapted" if trained.adapted else "source-only"
    figures = record["figures"]
    own, reference = (_inputs(prepared, m, shift, seed) for m in (final, trained.twin))
    _, low, high = shift.prior or (None, None, None)
    # Where nothing was trained here the seconds are those of reading a cache.
    trained_here = trained.folder.checkpoints.is_dir()
    vetoes = veto(own, reference, low, high)
    judged = record["verdict"]
    if judged is not None and judged["deliver"] == "source-only":
        # What 'adapt' would not deliver is not recommended either.
        vetoes = (*vetoes, _WITHHELD[judged["verdict"]])
    return {
        "source_validation": figures["source_validation"][name],
        "estimates": _estimates(trained, shift),
        "scores": _plain(trained.scores.values(own)),
        "source_accuracy": source_accuracy(own),
        "vetoes": list(vetoes),
        "collapse": figures["collapse"],
        "divergence": _plain(figures["divergence"][name]),
        "raises_confidence": judged is not None and judged["raises_confidence"],
        "verdict": judged and {key: judged[key] for key in ("verdict", "reasons")},
        "train_seconds": record["timings"]["train_seconds"] if trained_here else None,
        "plugins": record["plugins"],
        "data": record["data"],
        "run": {key: record[key] for key in ("versions", "device", "model", "augmentation")},
        "options": options_shown(trained.config),
    }


def _estimates(trained: Trained, shift: SeedShift) -> list[dict[str, Any]]:
    """Return the accuracy estimates; the verdict of a run with methods has made them already."""
    if trained.record["verdict"] is not None:
        made: list[dict[str, Any]] = trained.record["verdict"]["estimates"]["adapted"]
        return made
    return estimates_of(trained, trained.twin, shift)


def estimates_of(trained: Trained, model: Delivered, shift: SeedShift) -> list[dict[str, Any]]:
    """Return the accuracy estimates of a model of a run.

    Args:
        trained: the run.
        model: one of its models.
        shift: of its seed.
    """
    found = estimate_accuracy(
        model_sample(trained.prepared, model),
        kind=shift.kind,
        target_heads=linear_heads(trained.prepared, model, trained.config.seed),
        n_bootstrap=N_BOOTSTRAP,
        seed=trained.config.seed,
    )
    return [estimate.to_json() for estimate in found]


def _inputs(prepared: Prepared, model: Delivered, shift: SeedShift, seed: int) -> ScoreInputs:
    """Return what selection scores need: images that the model was not trained on."""
    data, passes = prepared.data, model.passes
    places = np.searchsorted(passes.source_rows, data.val_rows)
    assert data.source.labels is not None
    target = passes.target_logits[data.target_rows]
    return score_inputs(
        np.exp(model.rule.calibration.log_posterior(target)),
        np.exp(model.rule.calibration.log_posterior(passes.val_logits)),
        data.source.labels[data.val_rows],
        source_groups=data.source.groups[data.val_rows],
        target_groups=data.target.groups[data.target_rows],
        source_features=passes.source_features[places],
        target_features=passes.target_features[data.target_rows],
        target_prior=None if shift.prior is None else shift.prior[0],
        seed=seed,
    )


def _plain(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {
        name: float(value) if value is not None and np.isfinite(value) else None
        for name, value in values.items()
    }
