"""Label-shift correction: class weights for training, the target prior for prediction."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from daptkit.errors import DataError
from daptkit.method import FitContext, Method, TaskInfo
from daptkit.shift import PriorEstimate, TrustLimits, estimate_prior
from daptkit_bbse.evidence import ShiftEvidence, cross_fitted, held_out
from daptkit_bbse.plugin import BBSEOptions

NEVER = float("inf")
WITHOUT_LIMITS = TrustLimits(
    min_per_class=0,
    min_target=0,
    min_skill=-NEVER,
    min_condition=-NEVER,
    max_noise_ratio=NEVER,
    max_implied_error=NEVER,
    max_feature_gap=NEVER,
    max_agreement=NEVER,
    max_spread=NEVER,
    min_ess=0.0,
)


class BBSE(Method):
    """Estimate the target prior q under label shift and act on it.

    Training: class weights w = q / p, p the source training prior, averaged over epochs; they move
    back towards 1 while the estimate is not trusted. Prediction: the host adds log q - log pi once,
    or, if the final estimate is not trusted, goes back to the source's prior.

    Args:
        options: estimator, switches and limits.
        task: classes and source prior p, (K,).

    Reference: Lipton, Wang, Smola 2018, arXiv:1802.03916; Azizzadenesheli et al. 2019,
    arXiv:1903.09734; Alexandari, Kundaje, Shrikumar 2020, arXiv:1901.06852.
    """

    weights: Tensor
    prior: Tensor

    def __init__(self, options: BBSEOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.options: BBSEOptions = options
        self.register_buffer("weights", torch.ones(task.num_classes))  # (K,)
        # NaN stands for "no prior", so that a checkpoint holds the same buffers before and after.
        self.register_buffer("prior", torch.full((task.num_classes,), torch.nan))  # (K,)
        self._estimate: PriorEstimate | None = None
        self._evidence_kind = ""
        self._cross_fitted: ShiftEvidence | None = None
        self._said: set[str] = set()

    def class_weights(self) -> Tensor | None:
        """Return w, (K,), of mean 1 under the source prior; ``None`` when switched off."""
        return self.weights if self.options.weights else None

    def target_prior(self) -> Tensor | None:
        """Return q, (K,), or ``None`` when switched off, not yet estimated or not trusted."""
        known = self.options.prior and bool(torch.isfinite(self.prior).all())
        return self.prior if known else None

    def target_prior_interval(self) -> tuple[Tensor, Tensor] | None:
        """Return the ends of q's bootstrap interval, (K,) each, or ``None`` without bootstrap."""
        found = self._estimate
        if found is None or not np.isfinite(found.low).all():
            return None
        return torch.from_numpy(found.low), torch.from_numpy(found.high)

    def on_epoch_end(self, ctx: FitContext) -> None:
        """Move the class weights towards the ratio of the current estimate."""
        last = ctx.progress >= 1.0
        if not self.options.weights or ctx.progress < self.options.warmup or last:
            return
        found = self._estimate_prior(ctx, bootstraps=0)
        ctx.log("bbse/trusted", float(found.trusted))
        ctx.log("bbse/ess", found.ess)
        ctx.log("bbse/agreement", found.agreement)
        if math.isfinite(found.feature_gap):
            ctx.log("bbse/feature_gap", found.feature_gap)
        new = torch.as_tensor(found.weights, dtype=self.weights.dtype, device=self.weights.device)
        self.weights.lerp_(new, 1.0 - self.options.ema)

    def on_fit_end(self, ctx: FitContext) -> None:
        """Estimate the prior with its interval; take it over, or abstain and say why."""
        found = self._estimate_prior(ctx, bootstraps=self.options.bootstrap)
        self._estimate = found
        # The weights stay those that the model was trained under: the host calibrates under them,
        # and takes them back where no prior of the target is known.
        if found.prior is None:
            self.prior.fill_(torch.nan)
            ctx.note(
                "bbse: the target prior is not trusted, so predictions keep the source's prior: "
                f"{'; '.join(found.reasons)}."
            )
            return
        self.prior.copy_(torch.as_tensor(found.prior, dtype=self.prior.dtype))

    def report(self) -> dict[str, Any]:
        """Return the final estimate, its interval and the checks, for ``run.json``."""
        found = self._estimate
        if found is None:
            return {"class_weights": self.weights.tolist(), "trusted": False, "prior": None}
        estimate = found.to_json()
        estimate["estimated_weights"] = estimate.pop("weights")
        return {
            **estimate,
            "class_weights": self.weights.tolist(),
            "classes": list(self.task.classes),
            "source_prior": self.task.source_prior.tolist(),
            "evidence": self._evidence_kind,
        }

    def _estimate_prior(self, ctx: FitContext, bootstraps: int) -> PriorEstimate:
        evidence = self._evidence(ctx)
        self._evidence_kind = evidence.kind
        o = self.options
        return estimate_prior(
            evidence.source_logits,
            evidence.source_labels,
            evidence.target_logits,
            source_prior=self.task.source_prior.double().cpu().numpy(),
            source_weights=evidence.source_weights,
            source_groups=evidence.source_groups,
            target_groups=evidence.target_groups,
            source_features=evidence.source_features,
            target_features=evidence.target_features,
            n_source=self.task.n_source,
            method=o.estimator,
            bootstraps=bootstraps,
            pseudo_count=evidence.pseudo_count,
            shrink=o.shrink,
            max_weight=o.max_weight,
            limits=None if o.abstain else WITHOUT_LIMITS,
            seed=ctx.seed,
        )

    def _evidence(self, ctx: FitContext) -> ShiftEvidence:
        """Return held-out logits, cross-fitted where source validation is small."""
        if self._cross_fitted is not None:
            return self._cross_fitted
        evidence = held_out(ctx)
        if evidence.kind != "small":
            return evidence
        if ctx.finetune != "frozen":
            self._say(ctx, "source validation is small: the confusion matrix is shrunk.")
            return evidence
        try:
            # A frozen trunk does not change, so neither does this: it is made once a run.
            self._cross_fitted = cross_fitted(ctx)
        except DataError as error:
            self._say(ctx, f"source validation is small and cannot be cross-fitted: {error}")
            return evidence
        self._say(ctx, "source validation is small: the prior rests on cross-fitting.")
        return self._cross_fitted

    def _say(self, ctx: FitContext, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            ctx.note(f"bbse: {text}")
