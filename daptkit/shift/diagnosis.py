"""Which shift is it? Three questions answered by tests of whole patients, with effect sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from daptkit.errors import DataError
from daptkit.shift.appearance import Difference, compare_appearance
from daptkit.shift.arrays import FloatArray, IntArray, as_groups, as_labels, as_matrix
from daptkit.shift.audit import AuditSize, audit_size
from daptkit.shift.divergence import MIN_IMAGES, divergences, matrices
from daptkit.shift.labelshift import PriorEstimate, estimate_prior
from daptkit.shift.movedprior import some_patients
from daptkit.shift.questions import Images, three_questions
from daptkit.shift.twosample import PERMUTATIONS, ShiftTest
from daptkit.shift.verdict import any_shift_p, caveats

MAX_FOR_PRIOR = 3000
"""Images of a domain, of whole patients, that the prior and its interval are estimated from."""
BOOTSTRAPS = 100


@dataclass(frozen=True, kw_only=True)
class ShiftDiagnosis:
    """What differs between two domains, how sure that is, and what cannot be known.

    Args:
        kind: ``"none"``, ``"covariate"``, ``"label"``, ``"both"`` or ``"unclear"``.
        alpha: level of the answers; see :func:`daptkit.shift.verdict.kind_of_shift`.
        domains: test of "the features follow one law".
        prior: test of "the class frequencies are the same".
        residual: test of "nothing remains after re-weighting the classes".
        moved_prior: test of "the class frequencies are the same, all predictions may have moved";
            made where both tests before it reject, ``None`` otherwise.
        divergences: effect sizes: ``proxy_a_distance``, ``mmd2``, ``knn_domain_accuracy``, and
            ``mmd2_weighted``, MMD^2 after re-weighting.
        stages: the first three for each further layer.
        source_prior: class frequencies of the held-out source images, (K,).
        target_prior: estimate of the target's with its interval; ``None`` where not estimated.
        appearance: how image statistics and covariates differ, the largest effects first.
        audit: patients to label for an accuracy within 5 points.
        reasons: one sentence for each question's answer.
        caveats: what a reader has to know.
    """

    kind: str
    alpha: float
    domains: ShiftTest
    prior: ShiftTest
    residual: ShiftTest
    moved_prior: ShiftTest | None
    divergences: Mapping[str, float]
    stages: Mapping[str, Mapping[str, float]]
    source_prior: FloatArray
    target_prior: PriorEstimate | None
    appearance: tuple[Difference, ...]
    audit: AuditSize
    reasons: tuple[str, ...]
    caveats: tuple[str, ...]

    @property
    def p(self) -> float:
        """Return the p value of "the sites do not differ", of all three tests; NaN without any."""
        return any_shift_p(self.domains, self.prior, self.residual)

    @property
    def prior_change(self) -> float:
        """Return sum_k |q_k - p_k| / 2, in [0, 1]; NaN where the prior was not estimated."""
        if self.target_prior is None:
            return float("nan")
        return 0.5 * float(np.abs(self.target_prior.estimate - self.source_prior).sum())

    @property
    def level(self) -> str:
        """Say what the answers' error rate is."""
        share = f"{100 * self.alpha:g}%"
        return (
            f"Of equal sites at most {share} are called different; of sites with one kind of shift "
            f"at most {share} are said to have the other one too."
        )

    @property
    def concept(self) -> str:
        """Say what only labels of the target can show."""
        a = self.audit
        several = f", about {a.images} images," if a.images_per_patient > 1.0 else ""
        return (
            "Whether the meaning of a label differs between the sites (concept shift) cannot be "
            f"tested without target labels; {a.patients} labelled patients{several} show the "
            f"accuracy there to within {100 * a.margin:g} points."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, NaN as ``None``."""

        def plain(values: Mapping[str, float]) -> dict[str, float | None]:
            return {k: float(v) if np.isfinite(v) else None for k, v in values.items()}

        return {
            "kind": self.kind,
            "alpha": self.alpha,
            "level": self.level,
            "p": plain({"value": self.p})["value"],
            "tests": {
                "domains": self.domains.to_json(),
                "prior": self.prior.to_json(),
                "residual": self.residual.to_json(),
                "moved_prior": None if self.moved_prior is None else self.moved_prior.to_json(),
            },
            "divergences": plain(self.divergences),
            "stages": {name: plain(values) for name, values in self.stages.items()},
            "source_prior": [float(v) for v in self.source_prior],
            "target_prior": None if self.target_prior is None else self.target_prior.to_json(),
            "prior_change": plain({"value": self.prior_change})["value"],
            "appearance": [difference.to_json() for difference in self.appearance],
            "audit": self.audit.to_json(),
            "reasons": list(self.reasons),
            "caveats": list(self.caveats),
            "concept": self.concept,
        }


def diagnose_shift(
    source_features: npt.ArrayLike,
    source_logits: npt.ArrayLike,
    source_labels: npt.ArrayLike,
    target_features: npt.ArrayLike,
    target_logits: npt.ArrayLike,
    *,
    source_groups: npt.ArrayLike | None = None,
    target_groups: npt.ArrayLike | None = None,
    stages: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]] | None = None,
    source_statistics: Mapping[str, npt.ArrayLike] | None = None,
    target_statistics: Mapping[str, npt.ArrayLike] | None = None,
    alpha: float = 0.05,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> ShiftDiagnosis:
    """Diagnose which shift there is between two domains; no target label is read.

    Three questions, each answered by a test in which patients are whole units: do the domains
    differ (:func:`domain_test`), did the class frequencies change (:func:`prior_test`), does
    anything remain after re-weighting the source's classes (:func:`residual_test`). Where the last
    two say yes, :func:`moved_prior_test` asks again whether class frequencies changed. How the
    answers make a kind, and at which level, is in :func:`daptkit.shift.verdict.kind_of_shift`.

    Args:
        source_features: (N, D) of source images that the classifier was *not* trained on.
        source_logits: (N, K).
        source_labels: (N,) class indices.
        target_features: (M, D).
        target_logits: (M, K).
        source_groups: (N,) patients; one per image if ``None``.
        target_groups: (M,) patients.
        stages: name of a layer -> its features of both domains, for effect sizes alone.
        source_statistics: name -> (N,) numbers or texts of each source image, as
            :func:`daptkit.shift.compare_appearance` takes them.
        target_statistics: name -> (M,).
        alpha: level of the answers, in (0, 0.5).
        permutations: of each test; the smallest p value is 1 / (permutations + 1).
        seed: of everything drawn.

    Raises:
        DataError: arrays of wrong shape or not finite, or an impossible level.
    """
    if not 0.0 < alpha < 0.5 or permutations < 1:
        raise DataError("the level must lie between 0 and 0.5, with at least 1 permutation.")
    x, t = matrices(source_features, target_features)
    z_s, z_t = matrices(
        as_matrix(source_logits, "source logits"), as_matrix(target_logits, "target logits")
    )
    if len(z_s) != len(x) or len(z_t) != len(t):
        raise DataError(
            f"there are {len(x)} and {len(t)} rows of features, but {len(z_s)} and {len(z_t)} of "
            "logits."
        )
    y = as_labels(source_labels, len(x), z_s.shape[1])
    g_s, g_t = as_groups(source_groups, len(x)), as_groups(target_groups, len(t))
    groups = {"source_groups": g_s, "target_groups": g_t}
    known = source_groups is not None and target_groups is not None
    answers = three_questions(
        Images(features=x, logits=z_s, groups=g_s),
        y,
        Images(features=t, logits=z_t, groups=g_t),
        alpha=alpha,
        permutations=permutations,
        seed=seed,
    )
    estimate = _prior(x, z_s, y, g_s, t, z_t, g_t, seed)
    p = np.bincount(y, minlength=z_s.shape[1]) / len(y)
    weights = None if estimate is None else (estimate.estimate / np.maximum(p, 1e-12))[y]
    found = divergences(x, t, reweighted=weights, seed=seed, **groups)
    found.setdefault("mmd2_weighted", float("nan"))
    distance = found["proxy_a_distance"]
    appearance = compare_appearance(
        source_statistics or {}, target_statistics or {}, seed=seed, **groups
    )
    return ShiftDiagnosis(
        kind=answers.kind,
        alpha=alpha,
        domains=answers.domains,
        prior=answers.prior,
        residual=answers.residual,
        moved_prior=answers.moved_prior,
        divergences=found,
        stages={
            name: divergences(s, u, seed=seed, **groups) for name, (s, u) in (stages or {}).items()
        },
        source_prior=np.asarray(p, dtype=np.float64),
        target_prior=estimate,
        appearance=appearance,
        audit=audit_size(z_s.argmax(axis=1) == y, g_s, g_t),
        reasons=answers.reasons,
        caveats=caveats(
            answers.kind,
            (answers.domains, answers.prior, answers.residual),
            estimate,
            distance,
            known,
        ),
    )


def _prior(
    x: FloatArray,
    z_s: FloatArray,
    y: IntArray,
    g_s: IntArray,
    t: FloatArray,
    z_t: FloatArray,
    g_t: IntArray,
    seed: int,
) -> PriorEstimate | None:
    """Estimate the target prior from some patients of both domains, ``None`` if too few."""
    if min(len(x), len(t)) < MIN_IMAGES or z_s.shape[1] < 2:
        return None
    rng = np.random.default_rng(seed)
    s, u = (some_patients(g, MAX_FOR_PRIOR, rng) for g in (g_s, g_t))
    return estimate_prior(
        z_s[s],
        y[s],
        z_t[u],
        source_prior=np.bincount(y, minlength=z_s.shape[1]),
        source_groups=g_s[s],
        target_groups=g_t[u],
        source_features=x[s],
        target_features=t[u],
        n_source=len(x),
        bootstraps=BOOTSTRAPS,
        seed=seed,
    )
