"""The prediction rule: logits, calibration, one prior correction, decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax

from daptkit.errors import DataError, UsageError, did_you_mean
from daptkit.shift.arrays import FloatArray, IntArray
from daptkit.shift.calibration import Calibration

DOMAINS = ("source", "target")
PRIOR_FLOOR = 1e-12


@dataclass(frozen=True)
class SensitivityTarget:
    """The parsed rule ``sens=CLASS:VALUE``: class index and wanted sensitivity in (0, 1]."""

    class_index: int
    sensitivity: float


def parse_decide(decide: str, classes: Sequence[str]) -> SensitivityTarget | None:
    """Check a decision rule; return the parsed ``sens=`` rule, ``None`` for map and balanced.

    Args:
        decide: ``"map"``, ``"balanced"`` or ``"sens=CLASS:VALUE"`` with VALUE in (0, 1].
        classes: class names, in the order of the logits.

    Raises:
        UsageError: unknown rule, unknown class (with a suggestion) or impossible value.
    """
    if decide in ("map", "balanced"):
        return None
    if not decide.startswith("sens="):
        hint = did_you_mean(decide, ("map", "balanced", "sens="))
        raise UsageError(f"--decide is map, balanced or sens=CLASS:0.95, not {decide!r}.{hint}")
    name, colon, text = decide.removeprefix("sens=").rpartition(":")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not colon or not 0.0 < value <= 1.0:
        raise UsageError(
            f"--decide {decide!r} needs a sensitivity in (0, 1], as in sens=CLASS:0.95."
        )
    if name not in classes:
        raise UsageError(
            f"--decide names class {name!r}; the classes are {', '.join(classes)}."
            + did_you_mean(name, classes)
        )
    return SensitivityTarget(list(classes).index(name), value)


@dataclass(frozen=True)
class PredictionRule:
    """Turn logits into posteriors and decisions, with the prior corrected exactly once.

    log P(y|x) = log P_w(y|x) + log r(y) - log pi(y) + const, P_w the calibrated posterior and pi
    its mean on source validation, both under the class weights w that training was done with. r is
    the prior of the domain: the target prior q for the target, where there is one; else pi / w,
    the source's prior, so that weights of training never tilt a prediction by themselves.
    Decisions:

    - ``map``: arg max of the posterior;
    - ``balanced``: arg max of posterior / prior in force;
    - ``sens=CLASS:v``: CLASS where its balanced posterior, P(x|y) / sum_k P(x|k), reaches the
      largest threshold that finds a fraction v of the source validation images of CLASS; elsewhere
      the arg max of the other classes' posteriors. The balanced posterior divides by the prior, so
      the correction cannot move it and one threshold serves both domains.

    Args:
        classes: names, in the order of the logits.
        calibration: fitted on source validation.
        source_prior: pi, (K,).
        target_prior: q, (K,), or ``None`` where the target keeps the source's prior.
        decide: rule used by default.
        thresholds: ``sens=`` rule to its threshold on the balanced posterior, in [0, 1].
        class_weights: w, (K,), or ``None`` for ones.

    Reference: Saerens, Latinne, Decaestecker 2002, doi:10.1162/089976602753284446.
    """

    classes: tuple[str, ...]
    calibration: Calibration
    source_prior: FloatArray
    target_prior: FloatArray | None = None
    decide: str = "map"
    thresholds: Mapping[str, float] | None = None
    class_weights: FloatArray | None = None

    def log_posterior(self, logits: npt.ArrayLike, domain: str = "target") -> FloatArray:
        """Return log posteriors (N, K) under the prior of ``domain``.

        Raises:
            UsageError: unknown domain.
            DataError: logits that are not finite or have another number of classes.
        """
        correction = _log(self.prior_in_force(domain)) - _log(self.source_prior)
        log_p = self.calibration.log_posterior(logits) + correction
        return np.asarray(log_softmax(log_p, axis=1), dtype=np.float64)

    def posterior(self, logits: npt.ArrayLike, domain: str = "target") -> FloatArray:
        """Return posteriors (N, K), rows summing to 1; see :meth:`log_posterior`."""
        return np.asarray(np.exp(self.log_posterior(logits, domain)), dtype=np.float64)

    def prior_in_force(self, domain: str = "target") -> FloatArray:
        """Return the prior (K,) under which :meth:`posterior` of ``domain`` is stated."""
        if _check_domain(domain) == "target" and self.target_prior is not None:
            return self.target_prior
        if self.class_weights is None:
            return self.source_prior
        # A class of weight 0 played no part in training, so there is nothing to take back.
        w = np.where(self.class_weights > 0, self.class_weights, 1.0)
        unweighted = self.source_prior / w
        return np.asarray(unweighted / unweighted.sum(), dtype=np.float64)

    def balanced_posterior(self, logits: npt.ArrayLike) -> FloatArray:
        """Return P(x|y) / sum_k P(x|k), (N, K): the posterior under equal priors.

        It does not depend on the target prior, since the correction cancels.
        """
        log_p = self.calibration.log_posterior(logits)
        return np.asarray(softmax(log_p - _log(self.source_prior), axis=1), dtype=np.float64)

    def predict(
        self, logits: npt.ArrayLike, domain: str = "target", decide: str | None = None
    ) -> IntArray:
        """Return class indices (N,).

        Args:
            logits: (N, K), uncorrected.
            domain: ``"source"`` or ``"target"``.
            decide: another rule than the stored one.

        Raises:
            UsageError: unknown domain or rule, or a ``sens=`` rule without fitted threshold.
        """
        return self.choose(self.posterior(logits, domain), self.balanced_posterior(logits), decide)

    def choose(
        self, posterior: FloatArray, balanced: FloatArray, decide: str | None = None
    ) -> IntArray:
        """Return class indices (N,) for probabilities, such as means over the images of a patient.

        Args:
            posterior: (N, K), under the prior in force; see :meth:`posterior`.
            balanced: (N, K), under equal priors; see :meth:`balanced_posterior`.
            decide: another rule than the stored one.

        Raises:
            UsageError: unknown rule, or a ``sens=`` rule without fitted threshold.
        """
        rule = self.decide if decide is None else decide
        wanted = parse_decide(rule, self.classes)
        if wanted is None:
            scores = posterior if rule == "map" else balanced
            return np.asarray(np.argmax(scores, axis=1), dtype=np.int64)
        threshold = (self.thresholds or {}).get(rule)
        if threshold is None:
            raise UsageError(
                f"this model has no threshold for {rule!r}; run adapt with --decide {rule}, "
                "which fits it on the source validation images."
            )
        score = balanced[:, wanted.class_index]
        rest = posterior.copy()
        rest[:, wanted.class_index] = -1.0
        chosen = np.where(score >= threshold, wanted.class_index, np.argmax(rest, axis=1))
        return np.asarray(chosen, dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """Return plain values that :meth:`from_json` reads back exactly."""
        return {
            "classes": list(self.classes),
            "calibration": self.calibration.to_json(),
            "source_prior": [float(v) for v in self.source_prior],
            "target_prior": None if self.target_prior is None else self.target_prior.tolist(),
            "class_weights": None if self.class_weights is None else self.class_weights.tolist(),
            "decide": self.decide,
            "thresholds": dict(self.thresholds or {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PredictionRule:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: missing or impossible values.
        """
        try:
            target, weights = data["target_prior"], data.get("class_weights")
            return cls(
                classes=tuple(str(name) for name in data["classes"]),
                calibration=Calibration.from_json(data["calibration"]),
                source_prior=np.asarray(data["source_prior"], dtype=np.float64),
                target_prior=None if target is None else np.asarray(target, dtype=np.float64),
                decide=str(data["decide"]),
                thresholds={str(k): float(v) for k, v in data["thresholds"].items()},
                class_weights=None if weights is None else np.asarray(weights, dtype=np.float64),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the stored prediction rule is not readable ({error}).") from error


def _check_domain(domain: str) -> str:
    if domain not in DOMAINS:
        raise UsageError(
            f"--domain is source or target, not {domain!r}.{did_you_mean(domain, DOMAINS)}"
        )
    return domain


def _log(prior: FloatArray) -> FloatArray:
    return np.asarray(np.log(np.maximum(prior, PRIOR_FLOOR)), dtype=np.float64)
