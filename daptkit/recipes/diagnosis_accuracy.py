"""What a diagnosis says of accuracy at the target: estimates without labels, and a bound."""

from __future__ import annotations

from typing import Any

import numpy as np

from daptkit.assess import Sample, bound_panel, estimate_accuracy, sample_of, sample_under_rule
from daptkit.assess.accuracy.heads import HEADS, unseen_heads
from daptkit.recipes.diagnosis_inputs import Sites
from daptkit.shift import ShiftDiagnosis, choose_calibration
from daptkit.shift.choice import FITTED
from daptkit.shift.heads import FOLDS

_NO_HEADS = (
    "The agreement of heads was not measured: some would have seen images of one class alone."
)
_NO_LINE = (
    "No estimate by agreement on the line: the agreements of these heads, all of one recipe, lie on"
    " no rising line from source to target."
)


def accuracy(sites: Sites, diagnosis: ShiftDiagnosis) -> dict[str, Any]:
    """Return what the logits' accuracy at the target may be, and the terms of the bound on it.

    Args:
        sites: both sites.
        diagnosis: of them; its kind says which assumptions can be believed.
    """
    source, target, seed = sites.source, sites.target, sites.config.seed
    sample = _sample(sites)
    x, y = source.of_tested(source.features), source.of_tested(sites.labels)
    t = target.of_tested(target.features)
    g_s, g_t = source.tested_groups, target.tested_groups
    heads = unseen_heads(x, y, t, source_groups=g_s, target_groups=g_t, seed=seed)
    on_source, on_target = heads or (None, None)
    estimates = estimate_accuracy(
        sample, kind=diagnosis.kind, source_heads=on_source, target_heads=on_target, seed=seed
    )
    made = {estimate.name for estimate in estimates}
    bound = bound_panel(
        x,
        y,
        source.of_tested(sites.predicted),
        t,
        source_groups=g_s,
        target_groups=g_t,
        seed=seed,
    )
    predicted = sample.target_posterior.mean(axis=0).tolist()
    return {
        "accuracy_estimates": [estimate.to_json() for estimate in estimates],
        "agreeing_heads": {
            "heads": 0 if heads is None else HEADS,
            "folds": 0 if heads is None else FOLDS,
            "note": _NO_HEADS if heads is None else "" if "aline" in made else _NO_LINE,
        },
        "bound": bound.to_json(),
        "predicted": dict(zip(sites.classes, predicted, strict=True)),
    }


def _sample(sites: Sites) -> Sample:
    """Return what the logits say of the tested images; heads are calibrated on the source."""
    source, target = sites.source, sites.target
    y, z_s, z_t = (
        source.of_tested(sites.labels),
        source.of_tested(source.logits),
        target.of_tested(target.logits),
    )
    groups = {"source_groups": source.tested_groups, "target_groups": target.tested_groups}
    if sites.rule is not None:
        return sample_under_rule(sites.rule, z_s, y, z_t, **groups)
    calibration = choose_calibration(
        source.logits, sites.labels, groups=source.groups, kinds=FITTED, seed=sites.config.seed
    ).calibration
    posterior = [np.exp(calibration.log_posterior(z)) for z in (z_s, z_t)]
    return sample_of(posterior[0], y, posterior[1], **groups)
