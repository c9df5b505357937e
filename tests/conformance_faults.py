"""Methods that conform, and the same with a fault planted in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from daptkit.errors import DataError
from daptkit.host import LoadedMethod
from daptkit.method import DomainBatch, FitContext, Method, StepContext, TaskInfo
from daptkit.nn import domain_bce, gradient_reversal, weighted_covariance, weighted_mean
from daptkit.plugin import MethodSpec, option


@dataclass(frozen=True, kw_only=True)
class Options:
    weight: float = option(1.0, "Weight of the loss.", low=0.0)


@dataclass(frozen=True, kw_only=True)
class Boundless:
    weight: float = option(1.0, "Weight of the loss.")


@dataclass(frozen=True, kw_only=True)
class Unexplained:
    weight: float = option(1.0, "", low=0.0)


@dataclass(frozen=True, kw_only=True)
class Weightless:
    size: int = option(3, "Size of something.", low=1)


def loaded(factory: type[Method], **spec: Any) -> LoadedMethod:
    """Return a method whose class is given instead of imported."""

    class Loaded(LoadedMethod):
        def load_factory(self) -> type[Method]:
            return factory

    given = {"name": "fake", "summary": "Aligns.", "options": Options, **spec}
    made = MethodSpec(factory="tests:fake", **given)
    return Loaded(spec=made, package="daptkit-fake", version="1.2")


class Means(Method):
    """Squared distance of weighted means: no fault."""

    def statistic(self, features: Tensor, weights: Tensor) -> Tensor:
        return weighted_mean(features, weights)

    def features(self, batch: DomainBatch) -> Tensor:
        return batch.features

    def weights(self, batch: DomainBatch) -> Tensor:
        return batch.weights

    def gather(self, ctx: StepContext, x: Tensor) -> Tensor:
        return ctx.gather(x)

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        assert source is not None
        found = [
            self.statistic(self.gather(ctx, self.features(b)), self.gather(ctx, self.weights(b)))
            for b in (source, target)
        ]
        return {"gap": self.options.weight * (found[0] - found[1]).square().sum()}


class IgnoresTarget(Means):
    def losses(self, source: Any, target: Any, ctx: StepContext) -> dict[str, Tensor]:
        return super().losses(source, source, ctx) | {"size": source.features.square().mean()}


class Chunks(Means):
    def losses(self, source: Any, target: Any, ctx: StepContext) -> dict[str, Tensor]:
        both = ctx.gather(torch.cat([source.features, target.features]))
        first, second = both.chunk(2)
        return {"gap": (first.mean(0) - second.mean(0)).square().sum()}


class Detached(Means):
    def features(self, batch: DomainBatch) -> Tensor:
        return batch.features.detach() + 0.0 * batch.logits.sum()


class HalfDetached(Means):
    """The target's features only."""

    def features(self, batch: DomainBatch) -> Tensor:
        return batch.features if batch.labels is not None else batch.features.detach()


class WrongAxis(Means):
    def statistic(self, features: Tensor, weights: Tensor) -> Tensor:
        return weighted_covariance(features.T)


class InPlace(Means):
    def features(self, batch: DomainBatch) -> Tensor:
        batch.weights.mul_(1.5)
        return batch.features


class HardCodedDevice(Means):
    def statistic(self, features: Tensor, weights: Tensor) -> Tensor:
        return weighted_mean(features - torch.zeros(features.shape[1], device="cpu"), weights)


class NaNOnCollapse(Means):
    def statistic(self, features: Tensor, weights: Tensor) -> Tensor:
        mean = weighted_mean(features, weights)
        return mean / (features - mean).square().mean(0).sqrt()


class IgnoresWeights(Means):
    def weights(self, batch: DomainBatch) -> Tensor:
        return torch.ones_like(batch.weights)


class SlotReplacing(Means):
    def gather(self, ctx: StepContext, x: Tensor) -> Tensor:
        whole = ctx.gather(x.detach())
        return torch.cat([x, whole[len(x) :]])


class NoGather(Means):
    def gather(self, ctx: StepContext, x: Tensor) -> Tensor:
        return x


class PerProcessWeights(Means):
    def weights(self, batch: DomainBatch) -> Tensor:
        return batch.weights / batch.weights.sum()


class Reads(Means):
    def losses(self, source: Any, target: Any, ctx: StepContext) -> dict[str, Tensor]:
        losses = super().losses(source, target, ctx)
        ctx.log("gap", torch.tensor(losses["gap"].item()))
        return losses


class OnePassVariance(Means):
    def statistic(self, features: Tensor, weights: Tensor) -> Tensor:
        square = (features * features).mean(0) - features.mean(0) * features.mean(0)
        return weighted_mean(features, weights) / (square.sqrt() + 1.0)


class UnbiasedSpread(Means):
    def statistic(self, features: Tensor, weights: Tensor) -> Tensor:
        return weighted_mean(features, weights) + features.std(0)


class VectorLoss(Means):
    def losses(self, source: Any, target: Any, ctx: StepContext) -> dict[str, Tensor]:
        return {"gap": super().losses(source, target, ctx)["gap"][None]}


class BadName(Means):
    def losses(self, source: Any, target: Any, ctx: StepContext) -> dict[str, Tensor]:
        return {"mean/gap": super().losses(source, target, ctx)["gap"]}


class NoLoss(Means):
    def losses(self, source: Any, target: Any, ctx: StepContext) -> dict[str, Tensor]:
        return {}


class FirstCounts(Means):
    """Images are weighted by their place in the batch."""

    def weights(self, batch: DomainBatch) -> Tensor:
        return batch.weights * torch.linspace(2.0, 1.0, len(batch), device=batch.weights.device)


class HiddenAverage(Means):
    """An average over steps that no checkpoint holds."""

    average: Tensor | None = None

    def losses(self, source: Any, target: Any, ctx: StepContext) -> dict[str, Tensor]:
        mean = ctx.gather(target.features).mean(0)
        old = mean.detach() if self.average is None else self.average
        self.average = (0.9 * old + 0.1 * mean).detach()
        means = weighted_mean(ctx.gather(source.features), ctx.gather(source.weights))
        return {"gap": (means - 0.1 * mean - 0.9 * self.average).square().sum()}


class BackwardInside(Means):
    def losses(self, source: Any, target: Any, ctx: StepContext) -> dict[str, Tensor]:
        losses = super().losses(source, target, ctx)
        torch.autograd.backward(losses["gap"], retain_graph=True)
        return losses


class Adversary(Method):
    """A discriminator behind gradient reversal: no fault."""

    units = 1

    def __init__(self, options: Any, task: TaskInfo) -> None:
        super().__init__(options, task)
        size = task.dims["features"]
        self.body = nn.Sequential(nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, self.units))

    def reverse(self, x: Tensor, ctx: StepContext) -> Tensor:
        return gradient_reversal(x, self.options.weight)

    def logits(self, x: Tensor) -> Tensor:
        return self.body(x.to(self.body[0].weight.dtype)).squeeze(1)

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        assert source is not None
        both = self.reverse(torch.cat([source.features, target.features]), ctx)
        s, t = self.logits(both).split([len(source), len(target)])
        weights = ctx.gather(source.weights), ctx.gather(target.weights)
        return {"domain": domain_bce(ctx.gather(s), ctx.gather(t), *weights)}


class NoReversal(Adversary):
    def reverse(self, x: Tensor, ctx: StepContext) -> Tensor:
        return x


class SoftmaxOfOne(Adversary):
    def logits(self, x: Tensor) -> Tensor:
        return torch.softmax(self.body(x.to(self.body[0].weight.dtype)), 1).squeeze(1)


class StepsOptimiser(Adversary):
    def losses(self, source: Any, target: Any, ctx: StepContext) -> dict[str, Tensor]:
        losses = super().losses(source, target, ctx)
        gradients = torch.autograd.grad(
            losses["domain"], list(self.parameters()), retain_graph=True
        )
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters(), gradients, strict=True):
                parameter.data -= 0.01 * gradient
        return losses


class Unused(Adversary):
    def __init__(self, options: Any, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.spare = nn.Linear(2, 2)


class DoubleGroup(Adversary):
    def param_groups(self) -> list[dict[str, Any]]:
        return 2 * super().param_groups()


class BatchNormInside(Adversary):
    """Normalisation over the batch: rows of weight 0 count."""

    def __init__(self, options: Any, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.norm = nn.BatchNorm1d(task.dims["features"])

    def logits(self, x: Tensor) -> Tensor:
        return super().logits(self.norm(x.float()))


class SourcePrior(Method):
    """Estimates of label shift that never find one."""

    def class_weights(self) -> Tensor | None:
        return torch.ones(self.task.num_classes)

    def target_prior(self) -> Tensor | None:
        return self.task.source_prior


class Entropy(Method):
    """Source-free: the target's predictions alone."""

    def losses(
        self, source: DomainBatch | None, target: DomainBatch, ctx: StepContext
    ) -> dict[str, Tensor]:
        p = torch.softmax(ctx.gather(target.logits).float(), 1)
        return {"entropy": self.options.weight * -(p * (p + 1e-6).log()).sum(1).mean()}


class Tone(Method):
    """Role ``inputs``: gives the target the mean and spread of the source's levels; no fault."""

    def __init__(self, options: Any, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.register_buffer("tone", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def fit_images(self, source: Tensor, target: Tensor) -> None:
        found = [torch.stack([x.mean(), x.std() + 1e-3]) for x in (source, target)]
        self.tone.copy_(torch.stack(found))

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        (mean, spread), (own, wide) = self.tone
        return images if domain == "source" else (images - own) / wide * spread + mean


class ToneOfBatch(Tone):
    def align_images(self, images: Tensor, domain: str) -> Tensor:
        self.tone[1] = torch.stack([images.mean(), images.std() + 1e-3])
        return super().align_images(images, domain)


class ToneOfNothing(Tone):
    """A spread of 0 is divided by."""

    def fit_images(self, source: Tensor, target: Tensor) -> None:
        super().fit_images(source, target)
        self.tone[:, 1] -= 1e-3


class Darkens(Tone):
    """Sites that agree are changed."""

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        return 0.8 * super().align_images(images, domain)


class Paints(Tone):
    """Nothing of the target's tone is undone."""

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        return images


class TrainingNoise(Tone):
    """Noise of training only, which prediction is without: no fault."""

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        aligned = super().align_images(images, domain)
        return aligned + torch.randn_like(aligned) if self.training else aligned


class RefusesOneLevel(Tone):
    """No fault."""

    def fit_images(self, source: Tensor, target: Tensor) -> None:
        super().fit_images(source, target)
        if bool((self.tone[:, 1] < 0.01).any()):
            raise DataError("images of a single level.")


class Smooths(Method):
    """Nothing of levels or colours: no fault where it says so."""

    def align_images(self, images: Tensor, domain: str) -> Tensor:
        return images if domain == "source" else 0.999 * images


class DarkensInPlace(Tone):
    def align_images(self, images: Tensor, domain: str) -> Tensor:
        return images.mul_(0.5)


class Standardised(Method):
    """Roles ``features`` and ``norm``: each domain by its own moments; no fault."""

    layers = ("features", "trunk")

    def __init__(self, options: Any, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.register_buffer("moments", torch.ones(2, 2, task.dims["trunk"]))

    def measured(self, ctx: FitContext, layer: str) -> list[tuple[Tensor, Tensor]]:
        return [ctx.input_moments(d, (layer,))[layer] for d in ("source", "target")]

    def fit_features(self, ctx: FitContext) -> None:
        pairs = self.measured(ctx, "trunk")
        self.moments.copy_(torch.stack([torch.stack(pair) for pair in pairs]))

    def by(self, features: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return (features - mean) / (var + 1e-3).sqrt()

    def align_features(self, features: Tensor, domain: str) -> Tensor:
        return self.by(features, *self.moments[int(domain == "target")])

    def align_batch(self, features: Tensor, domain: str, weights: Tensor, gather: Any) -> Tensor:
        x, w = gather(features), gather(weights)
        mean = weighted_mean(x, w)
        return self.by(features, mean, weighted_mean((x - mean).square(), w))

    def norm_statistics(self, ctx: FitContext) -> dict[str, tuple[Tensor, Tensor]]:
        layers, source = ctx.norm_layers(), ctx.input_moments("source")

        def choose(name: str, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
            ratio = var / source[name][1]
            moved = (source[name][0] - layers[name].mean) * ratio.sqrt()
            return mean - moved, layers[name].var * ratio

        return ctx.chained_statistics("target", choose)


class OfTheRowsPassed(Standardised):
    def align_features(self, features: Tensor, domain: str) -> Tensor:
        return features - features.mean(0)


class FittedInNoBuffer(Standardised):
    def fit_features(self, ctx: FitContext) -> None:
        super().fit_features(ctx)
        self.moments = self.moments.clone()
        self.kept, self.moments[:] = self.moments.clone(), 1.0

    def align_features(self, features: Tensor, domain: str) -> Tensor:
        moments = getattr(self, "kept", self.moments)
        return self.by(features, *moments[int(domain == "target")])


class NoSpread(Standardised):
    def by(self, features: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return (features - mean) / var.sqrt()


class InPlaceRows(Standardised):
    def align_features(self, features: Tensor, domain: str) -> Tensor:
        return features.sub_(features.mean(0))


class OfTheBottleneck(Standardised):
    """Its buffers have the size of other features."""

    def __init__(self, options: Any, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.register_buffer("moments", torch.ones(2, 2, task.dims["features"]))


class RunningBatches(Standardised):
    """An average over batches, kept in buffers: no fault."""

    def __init__(self, options: Any, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.register_buffer("running", torch.zeros(2, 2, task.dims["trunk"]))

    def align_batch(self, features: Tensor, domain: str, weights: Tensor, gather: Any) -> Tensor:
        x, w = gather(features), gather(weights)
        mean = weighted_mean(x, w)
        var = weighted_mean((x - mean).square(), w)
        place = int(domain == "target")
        self.running[place] = 0.2 * self.running[place] + 0.8 * torch.stack([mean, var]).detach()
        return self.by(features, mean, var)


class TargetAlone(Standardised):
    """The published statistics, which see no source and no class weights: no fault."""

    def norm_statistics(self, ctx: FitContext) -> dict[str, tuple[Tensor, Tensor]]:
        return ctx.chained_statistics("target", lambda name, mean, var: (mean, var))


class MeasuresByPasses(Standardised):
    """Weighted moments of whole-split passes: no fault."""

    def measured(self, ctx: FitContext, layer: str) -> list[tuple[Tensor, Tensor]]:
        found = []
        for split in ("source_train", "target"):
            passed = ctx.predict(split, (layer,))
            rows, weights = passed.taps[layer], passed.weights
            mean = weighted_mean(rows, weights)
            found.append((mean, weighted_mean((rows - mean).square(), weights)))
        return found


class NaNBatches(Standardised):
    def align_batch(self, features: Tensor, domain: str, weights: Tensor, gather: Any) -> Tensor:
        return super().align_batch(features, domain, weights, gather) / 0.0


class SourceBatches(Standardised):
    """Batches of both domains by the source's moments."""

    def align_batch(self, features: Tensor, domain: str, weights: Tensor, gather: Any) -> Tensor:
        return self.by(features, *self.moments[0])


class BatchesDetached(Standardised):
    def align_batch(self, features: Tensor, domain: str, weights: Tensor, gather: Any) -> Tensor:
        return super().align_batch(features.detach(), domain, weights, gather)


class BatchesUnweighted(Standardised):
    def align_batch(self, features: Tensor, domain: str, weights: Tensor, gather: Any) -> Tensor:
        return super().align_batch(features, domain, torch.ones_like(weights), gather)


class BatchesApart(Standardised):
    """Each process by its own rows."""

    def align_batch(self, features: Tensor, domain: str, weights: Tensor, gather: Any) -> Tensor:
        return super().align_batch(features, domain, weights, lambda x: x)


class PriorsMove(Standardised):
    """What is measured of the source does not count by the class weights."""

    def measured(self, ctx: FitContext, layer: str) -> list[tuple[Tensor, Tensor]]:
        rows = ctx.predict("source_train", ("trunk",)).taps[layer]
        return [(rows.mean(0), rows.var(0)), ctx.input_moments("target", (layer,))[layer]]


class SourceStatistics(Standardised):
    """Both domains by the source's."""

    def align_features(self, features: Tensor, domain: str) -> Tensor:
        return self.by(features, *self.moments[0])

    def norm_statistics(self, ctx: FitContext) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (layer.mean, layer.var) for name, layer in ctx.norm_layers().items()}


class AnotherOnceAsked(Standardised):
    """What it returns depends on what was asked before."""

    asked = False

    def norm_statistics(self, ctx: FitContext) -> dict[str, tuple[Tensor, Tensor]]:
        found = {} if self.asked else super().norm_statistics(ctx)
        self.asked = True
        return found


class Lists(Standardised):
    def norm_statistics(self, ctx: FitContext) -> Any:
        return {name: list(pair) for name, pair in super().norm_statistics(ctx).items()}


class SourceInFit(Method):
    """Source-free by its specification."""

    layers = ("features", "trunk")

    def fit_features(self, ctx: FitContext) -> None:
        ctx.input_moments("source", ("trunk",))


class NegativeVariance(Standardised):
    def norm_statistics(self, ctx: FitContext) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (mean, -var) for name, (mean, var) in super().norm_statistics(ctx).items()}


class AsksForSource(Entropy):
    def on_fit_start(self, ctx: FitContext) -> None:
        ctx.predict("source_train")


class NeedsSourceBatch(Entropy):
    def losses(self, source: Any, target: Any, ctx: StepContext) -> dict[str, Tensor]:
        return super().losses(source, target, ctx) | {"scale": source.logits.mean()}
