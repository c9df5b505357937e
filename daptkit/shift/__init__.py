"""Calibration, prediction rule, label shift, divergences, diagnosis: numpy in, numpy out."""

from __future__ import annotations

from daptkit.shift.appearance import Difference, compare_appearance
from daptkit.shift.arrays import effective_sample_size
from daptkit.shift.audit import AuditSize, audit_size
from daptkit.shift.calibration import Calibration, fit_calibration
from daptkit.shift.choice import CalibrationChoice, choose_calibration
from daptkit.shift.concept import ConceptTest, concept_test
from daptkit.shift.confusion import (
    conditional_confusion,
    hard_predictions,
    predicted_marginal,
    smallest_singular_value,
)
from daptkit.shift.crossfit import cross_fitted_logits
from daptkit.shift.diagnosis import ShiftDiagnosis, diagnose_shift
from daptkit.shift.divergence import divergences, knn_domain_accuracy, mmd2, proxy_a_distance
from daptkit.shift.estimators import bbse_prior, em_prior, rlls_prior
from daptkit.shift.gap import feature_gap
from daptkit.shift.imagestats import image_statistics
from daptkit.shift.labelshift import PriorEstimate, estimate_prior
from daptkit.shift.looks import Look, compare_looks
from daptkit.shift.movedprior import moved_prior_test
from daptkit.shift.prediction import PredictionRule, parse_decide
from daptkit.shift.priortest import prior_test
from daptkit.shift.recommend import Recommendation, recommend_methods
from daptkit.shift.residual import residual_test
from daptkit.shift.rulefit import fit_chosen_rule, fit_rule, sensitivity_threshold
from daptkit.shift.spectrum import radial_spectrum
from daptkit.shift.trust import TrustLimits
from daptkit.shift.twosample import ShiftTest, domain_test
from daptkit.shift.weights import importance_weights

__all__ = [
    "AuditSize",
    "Calibration",
    "CalibrationChoice",
    "ConceptTest",
    "Difference",
    "Look",
    "PredictionRule",
    "PriorEstimate",
    "Recommendation",
    "ShiftDiagnosis",
    "ShiftTest",
    "TrustLimits",
    "audit_size",
    "bbse_prior",
    "choose_calibration",
    "compare_appearance",
    "compare_looks",
    "concept_test",
    "conditional_confusion",
    "cross_fitted_logits",
    "diagnose_shift",
    "divergences",
    "domain_test",
    "effective_sample_size",
    "em_prior",
    "estimate_prior",
    "feature_gap",
    "fit_calibration",
    "fit_chosen_rule",
    "fit_rule",
    "hard_predictions",
    "image_statistics",
    "importance_weights",
    "knn_domain_accuracy",
    "mmd2",
    "moved_prior_test",
    "parse_decide",
    "predicted_marginal",
    "prior_test",
    "proxy_a_distance",
    "radial_spectrum",
    "recommend_methods",
    "residual_test",
    "rlls_prior",
    "sensitivity_threshold",
    "smallest_singular_value",
]
