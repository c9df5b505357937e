"""Calibration, the prediction rule, label shift and divergences: numpy in, numpy out."""

from __future__ import annotations

from daptkit.shift.arrays import effective_sample_size
from daptkit.shift.calibration import Calibration, fit_calibration
from daptkit.shift.choice import CalibrationChoice, choose_calibration
from daptkit.shift.confusion import (
    conditional_confusion,
    hard_predictions,
    predicted_marginal,
    smallest_singular_value,
)
from daptkit.shift.crossfit import cross_fitted_logits
from daptkit.shift.divergence import divergences, knn_domain_accuracy, mmd2, proxy_a_distance
from daptkit.shift.estimators import bbse_prior, em_prior, rlls_prior
from daptkit.shift.gap import feature_gap
from daptkit.shift.labelshift import PriorEstimate, estimate_prior
from daptkit.shift.prediction import (
    PredictionRule,
    fit_rule,
    parse_decide,
    sensitivity_threshold,
)
from daptkit.shift.trust import TrustLimits
from daptkit.shift.weights import importance_weights

__all__ = [
    "Calibration",
    "CalibrationChoice",
    "PredictionRule",
    "PriorEstimate",
    "TrustLimits",
    "bbse_prior",
    "choose_calibration",
    "conditional_confusion",
    "cross_fitted_logits",
    "divergences",
    "effective_sample_size",
    "em_prior",
    "estimate_prior",
    "feature_gap",
    "fit_calibration",
    "fit_rule",
    "hard_predictions",
    "importance_weights",
    "knn_domain_accuracy",
    "mmd2",
    "parse_decide",
    "predicted_marginal",
    "proxy_a_distance",
    "rlls_prior",
    "sensitivity_threshold",
    "smallest_singular_value",
]
