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
from daptkit_bbse.evidence import ShiftEvidence, cross_fitted, held_out, source_only
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

    Training: class weights w = q / p, p the source training prior, from the source-only model at
    the first step, since alignment without weights would itself move classes onto one another.
    After the warm-up the adapted model's own estimates are averaged in, epoch by epoch; while one
    is not trusted, the weights move back to the first (1 if that was not trusted either).
    Prediction: the host adds log q - log pi once, q by the adapted model, else by the source-only
    model; if neither is trusted, predictions go back to the source's prior.

    Args:
        options: estimator, switches and limits.
        task: classes and source prior p, (K,).

    Reference: Lipton, Wang, Smola 2018, arXiv:1802.03916; Azizzadenesheli et al. 2019,
    arXiv:1903.09734; Alexandari, Kundaje, Shrikumar 2020, arXiv:1901.06852.
    """

    weights: Tensor
    first_weights: Tensor
    prior: Tensor

    def __init__(self, options: BBSEOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.options: BBSEOptions = options
        self.register_buffer("weights", torch.ones(task.num_classes))  # (K,)
        self.register_buffer("first_weights", torch.ones(task.num_classes))  # (K,)
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

    def on_fit_start(self, ctx: FitContext) -> None:
        """Take the class weights of the source-only model's estimate, where it is trusted."""
        evidence = self._first_evidence(ctx) if self.options.weights else None
        if evidence is None:
            return
        found = self._estimate_prior(ctx, evidence, bootstraps=0)
        self.first_weights.copy_(torch.as_tensor(found.weights))
        self.weights.copy_(self.first_weights)

    def on_epoch_end(self, ctx: FitContext) -> None:
        """Move the class weights towards the ratio of the current estimate."""
        last = ctx.progress >= 1.0
        if not self.options.weights or ctx.progress < self.options.warmup or last:
            return
        found = self._estimate_prior(ctx, self._evidence(ctx), bootstraps=0)
        ctx.log("bbse/trusted", float(found.trusted))
        ctx.log("bbse/ess", found.ess)
        ctx.log("bbse/agreement", found.agreement)
        if math.isfinite(found.feature_gap):
            ctx.log("bbse/feature_gap", found.feature_gap)
        new = torch.as_tensor(found.weights) if found.trusted else self.first_weights
        self.weights.lerp_(new.to(self.weights), 1.0 - self.options.ema)

    def on_fit_end(self, ctx: FitContext) -> None:
        """Estimate the prior with its interval; take it over, or abstain and say why."""
        evidence = self._evidence(ctx)
        found = self._estimate_prior(ctx, evidence, bootstraps=self.options.bootstrap)
        if not found.trusted and evidence.kind != "cross-fitted":
            evidence, found = self._fall_back(ctx, evidence, found)
        self._estimate, self._evidence_kind = found, evidence.kind
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

    def _fall_back(
        self, ctx: FitContext, evidence: ShiftEvidence, found: PriorEstimate
    ) -> tuple[ShiftEvidence, PriorEstimate]:
        """Return the source-only model's estimate where it is trusted, else what was found."""
        first = self._first_evidence(ctx)
        if first is None:
            return evidence, found
        other = self._estimate_prior(ctx, first, bootstraps=self.options.bootstrap)
        if not other.trusted:
            return evidence, found
        self._say(
            ctx, "the target prior is the source-only model's: the adapted one's is not trusted."
        )
        return first, other

    def _first_evidence(self, ctx: FitContext) -> ShiftEvidence | None:
        """Return what is known before any alignment; ``None`` without a source-only model."""
        evidence = source_only(ctx)
        return evidence if evidence is None else self._enough(ctx, evidence)

    def _estimate_prior(
        self, ctx: FitContext, evidence: ShiftEvidence, bootstraps: int
    ) -> PriorEstimate:
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
        return (
            self._enough(ctx, held_out(ctx)) if self._cross_fitted is None else self._cross_fitted
        )

    def _enough(self, ctx: FitContext, evidence: ShiftEvidence) -> ShiftEvidence:
        """Replace evidence that rests on few images by cross-fitting, where that is possible."""
        if self._cross_fitted is not None:
            return self._cross_fitted
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
