"""Numeric kit for methods: gradient reversal, ramp, weighted moments, kernels, domain losses.

Everything here computes in float32 at least: autocast is switched off and half precision is
upcast, while float64 stays float64. Nothing reads a value back from the device, so no step waits
for it. Weights (N,) are non-negative importance weights, ``None`` for ones, and never receive a
gradient. Under several processes pass gathered inputs, so that every sum is global.
"""

from daptkit.nn.domain import (
    domain_bce,
    entropy,
    gradient_reversal,
    multilinear_map,
    ramp,
    random_multilinear_map,
)
from daptkit.nn.kernels import joint_mmd2, mmd2
from daptkit.nn.moments import (
    covariance_distance,
    mean_distance,
    weighted_covariance,
    weighted_mean,
)
from daptkit.nn.precision import full_precision

__all__ = [
    "covariance_distance",
    "domain_bce",
    "entropy",
    "full_precision",
    "gradient_reversal",
    "joint_mmd2",
    "mean_distance",
    "mmd2",
    "multilinear_map",
    "ramp",
    "random_multilinear_map",
    "weighted_covariance",
    "weighted_mean",
]
