"""Checks that a method does what it is for, on domains whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from daptkit.method import DomainBatch, Method, TaskInfo
from daptkit.testing.case import CheckFailed, MethodCase, NotApplicable, Pair, ensure, trained
from daptkit.testing.fit import MadeFitContext
from daptkit.testing.worlds import KnownShift, known_shift

_FIRST, _STEPS = 20, 50
"""Steps of the method's own parameters alone, and of both players."""
CLOSED = 0.5
_PRIOR_IMAGES = 600
_FAR = 0.2
"""L1 distance of an estimated prior to the truth that is too much."""


def closes_known_gap(case: MethodCase) -> None:
    """Following the losses closes half of a known gap, or undoes half of the errors it causes.

    Moved features, or else stretched ones, have to come back. What learns is one translation, or
    one scale a feature, of the whole target: no image can go its own way, and the source stays.
    The method's own parameters learn first, then along with it.
    """
    found = []
    for kind in ("move", "stretch"):
        world = known_shift(kind)
        before, after = _before_and_after(case, world)
        gaps = [world.gap(x) for x in (before, after)]
        wrong = [1 - world.accuracy(x) for x in (before, after)]
        if gaps[1] < CLOSED * gaps[0] or wrong[1] < CLOSED * wrong[0]:
            return
        found.append(
            f"a {kind} of distance {gaps[0]:.2f} becomes {gaps[1]:.2f}, errors on the target"
            f" {wrong[0]:.0%} become {wrong[1]:.0%}"
        )
    raise CheckFailed(f"following its losses leaves a known gap open: {'; '.join(found)}")


def _before_and_after(case: MethodCase, world: KnownShift) -> tuple[Tensor, Tensor]:
    """Return the target's features, (M, D), and what following the losses makes of them."""
    method = case.create()
    plain = world.target_features.to(case.device)
    mean = plain.mean(0)
    learnt = torch.zeros_like(mean).requires_grad_()

    def moved() -> Tensor:
        if world.kind == "stretch":
            return mean + (plain - mean) * learnt.exp()
        return plain + learnt

    case.call(_pair(case, world, moved()))  # says so where there is no loss
    # The sum of squared gradients slows a step down, and never blows a small gradient up: the
    # scale of a loss does not matter, and a discriminator is not overrun.
    of_features = torch.optim.Adagrad([learnt], lr=0.2)
    own = torch.optim.Adam(trained(method), lr=1e-3) if trained(method) else None
    for step in range(-_FIRST if own is not None else 0, _STEPS):
        features = moved() if step >= 0 else moved().detach()
        players = [player for player in (own, of_features if step >= 0 else None) if player]
        for player in players:
            player.zero_grad()
        total = case.call(_pair(case, world, features), method=method, step=step + _FIRST).total
        if total.requires_grad:
            torch.autograd.backward(total)
        for player in players:
            player.step()
    return plain, moved().detach()


def known_prior(case: MethodCase) -> None:
    """Class weights and the target prior are those that the target was drawn with."""
    owned = case.loaded.spec.roles & {"class_weights", "target_prior"}
    if not owned:
        raise NotApplicable("it owns neither class weights nor the target prior")
    for kind in ("none", "label"):
        world = known_shift(kind, _PRIOR_IMAGES, _PRIOR_IMAGES)
        case_here = replace(case, device=torch.device("cpu"))
        method = case_here.loaded.create(case_here.loaded.spec.options(), task_of(case, world))
        run_hooks(method, MadeFitContext(world))
        ratio = world.target_prior / world.task.source_prior
        for role in sorted(owned):
            found: Tensor | None = getattr(method, role)()
            if found is None:
                ensure(kind == "none", f"{role}() is None on a target of known label shift")
                continue
            ensure(
                found.shape == ratio.shape and bool((found >= 0).all()),
                f"{role}() is {found.tolist()}, not {len(ratio)} numbers of at least 0",
            )
            # Weights count by how common their class is; the prior is their share.
            share = found / found.sum() if role == "target_prior" else _as_prior(found, world)
            far = float((share - world.target_prior).abs().sum())
            ensure(
                far < _FAR,
                f"{role}() stand for class frequencies {_listed(share)}; the target was drawn with"
                f" {_listed(world.target_prior)}",
            )


def source_free(case: MethodCase) -> None:
    """A method that does not ask for the source runs without: in steps and between epochs."""
    if case.needs_source:
        raise NotApplicable("it asks for the source")
    world = known_shift("none", 60, 60)
    method = case.loaded.create(case.loaded.spec.options(), task_of(case, world))
    for with_norm in (False, True):
        ctx = MadeFitContext(world, with_source=False, with_norm=with_norm)
        if "features" in case.loaded.spec.roles:
            method.fit_features(ctx)
        if "norm" in case.loaded.spec.roles and with_norm:
            method.norm_statistics(ctx)
        run_hooks(method, ctx)
    case.call(case.pair())


def task_of(case: MethodCase, world: KnownShift) -> TaskInfo:
    """Return what the method is told of a world, each of whose layers is its features."""
    task, layers = world.task, case.task.dims
    return replace(task, dims={**dict.fromkeys(layers, task.dims["features"]), **task.dims})


def run_hooks(method: Method, ctx: MadeFitContext) -> None:
    """Call the hooks of a method in the order of a run."""
    method.on_fit_start(ctx)
    for epoch in range(ctx.epochs):
        ctx.epoch = epoch + 1
        method.on_epoch_end(ctx)
    method.on_fit_end(ctx)


def _as_prior(weights: Tensor, world: KnownShift) -> Tensor:
    mass = weights * world.task.source_prior
    return mass / mass.sum()


def _listed(values: Tensor) -> str:
    return ", ".join(f"{value:.2f}" for value in values.tolist())


def _pair(case: MethodCase, world: KnownShift, target_features: Tensor) -> Pair:
    """Return both domains as batches; logits, and other taps, follow the features."""
    features = world.source_features.to(case.device)
    target = _batch(case, world, target_features)
    if not case.needs_source:
        return Pair(None, target)
    source = _batch(case, world, features)
    labelled = "source_labels" in case.loaded.spec.needs
    labels = world.source_labels.to(case.device) if labelled else None
    return Pair(replace(source, labels=labels), target)


def _batch(case: MethodCase, world: KnownShift, features: Tensor) -> DomainBatch:
    drawn = case.draw(len(features), 5)
    generator = torch.Generator().manual_seed(11)
    taps = {
        layer: features @ torch.randn(features.shape[1], size, generator=generator).to(features)
        for layer, size in case.task.dims.items()
    }
    taps |= {"features": features, "logits": world.logits(features)}
    return replace(drawn, taps=taps, logits=taps["logits"], labels=None)


ANSWER_CHECKS = (closes_known_gap, known_prior, source_free)
