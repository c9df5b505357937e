"""Checks of what a method makes of images, features and statistics, by the roles that it owns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from daptkit.method import Method
from daptkit.testing.answer_checks import CLOSED, task_of
from daptkit.testing.case import CheckFailed, MethodCase, NotApplicable, ensure, same
from daptkit.testing.checks import assert_aligns_images
from daptkit.testing.fit import MadeFitContext, Moments
from daptkit.testing.processes import losses_of_two_processes
from daptkit.testing.worlds import KnownShift, known_shift

_IMAGES, _EDGE, _COARSE = 12, 16, 4
_UNMOVED = 0.02
"""Mean change of a level, and distance of domains, that counts as none."""
_ROWS = 600
_APART = 0.4
"""Deviations between the means of a class at both sites that are too much; chance makes 0.1."""

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "other grey levels": lambda x: 0.05 + 0.6 * x**1.5,
    "another colour": lambda x: x * x.new_tensor([0.9, 0.7, 0.5])[:, None, None] + 0.1,
}
"""What a site does to its images, (N, 3, H, W) in [0, 1]."""


def aligned_images(case: MethodCase) -> None:
    """Aligned images keep their shape and stay finite, each by itself, and all state is kept."""
    _owned(case, "inputs")
    source, target = _images(0), CHANGES["other grey levels"](_images(1))
    assert_aligns_images(case.create().cpu(), source, target)
    one_level = torch.full_like(target, 0.5)
    for pair in ((source, one_level), (one_level, target), (one_level, one_level)):
        method = case.create()
        _fit_images(method, *pair)
        for domain, images in zip(("source", "target"), pair, strict=True):
            found = method.align_images(images.to(case.device), domain)
            ensure(bool(found.isfinite().all()), f"{domain} images of a single level: not finite")


def known_appearance(case: MethodCase) -> None:
    """Half of a known change of grey levels or colours is undone; sites that agree stay."""
    _owned(case, "inputs")
    source, plain = _images(0), _images(1)
    method = case.create()
    _fit_images(method, source, source)
    moved = float((_aligned(case, method, source, "target") - source).abs().mean())
    ensure(
        moved < _UNMOVED,
        f"target images that are the source's own are changed, by {moved:.2f} of the grey scale",
    )
    found = []
    for kind, change in CHANGES.items():
        target, method = change(plain), case.create()
        _fit_images(method, source, target)
        here = _aligned(case, method, source, "source")
        gaps = [_gap_of_sites(source, target)]
        gaps.append(_gap_of_sites(here, _aligned(case, method, target, "target")))
        if gaps[1] < CLOSED * gaps[0]:
            return
        found.append(f"{kind} of distance {gaps[0]:.2f} becomes {gaps[1]:.2f}")
    raise CheckFailed(f"it leaves a known change of appearance: {'; '.join(found)}")


def aligned_features(case: MethodCase) -> None:
    """Aligned features keep their shape and stay finite, row by row, and all state is kept."""
    _owned(case, "features")
    for kind in ("move", "collapsed"):
        world = known_shift("move", _ROWS, _ROWS)
        if kind == "collapsed":
            world = replace(world, target_features=torch.full_like(world.target_features, 2.0))
        method = _fitted(case, world)
        anew = _made(case, world)
        anew.load_state_dict({name: x.clone() for name, x in method.state_dict().items()})
        for domain, x in (("source", world.source_features), ("target", world.target_features)):
            x = x.to(case.device)
            found = method.align_features(x, domain)
            ensure(found.shape == x.shape, f"the shape of {domain} features changed")
            ensure(bool(found.isfinite().all()), f"{domain} features are not finite ({kind})")
            ensure(
                same(method.align_features(x[:1], domain), found[:1]),
                f"what becomes of a row of the {domain} depends on others",
            )
            ensure(
                torch.equal(anew.align_features(x, domain), found),
                "not all that was fitted is in buffers",
            )


def aligned_batches(case: MethodCase) -> None:
    """Features of a batch take a gradient; rows of weight 0 do not count; processes share it."""
    _owned(case, "features")
    world = known_shift("move", _ROWS, _ROWS)
    method = _fitted(case, world, finetune="full")
    for domain, rows in (("source", world.source_features), ("target", world.target_features)):
        x = rows[:8].to(case.device).requires_grad_()
        weights = torch.linspace(0.4, 1.9, 8, device=case.device)
        whole = method.align_batch(x, domain, weights, _alone)
        ensure(whole.shape == x.shape, f"the shape of {domain} features changed")
        ensure(
            whole.requires_grad, f"no gradient reaches the {domain}'s features: they are detached"
        )
        absent = weights.clone()
        absent[5:] = 0.0
        kept = method.align_batch(x, domain, absent, _alone)[:5]
        left_out = method.align_batch(x[:5], domain, weights[:5], _alone)
        ensure(
            same(kept, left_out), f"{domain} rows of weight 0 count: the weights are not honoured"
        )

        def losses(part: slice, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
            mine = (x[part], domain, weights[part])  # noqa: B023 - called within the round
            return {"rows": method.align_batch(*mine, gather)}

        split = losses_of_two_processes(losses, slice(0, 4), slice(4, 8))["rows"]
        ensure(
            same(split, whole[:4]),
            f"two processes align other {domain} features than one with the whole batch: gather"
            " what they are aligned by",
        )


def known_statistics(case: MethodCase) -> None:
    """Statistics undo half of a move or stretch; domains that agree, or differ by prior, stay."""
    owned = case.loaded.spec.roles & {"features", "norm"}
    if not owned:
        raise NotApplicable("it owns neither features nor normalisation statistics")
    for with_norm in sorted(role == "norm" for role in owned):
        equal = known_shift("none", _ROWS, _ROWS)
        equal = replace(equal, target_features=equal.source_features)
        gap = _gaps(case, equal, with_norm)[1]
        ensure(gap < _UNMOVED, f"domains that are the same are brought apart, by {gap:.2f}")
        _ensure_prior_stays(case, with_norm)
        found = []
        for kind in ("move", "stretch"):
            gaps = _gaps(case, known_shift(kind, _ROWS, _ROWS), with_norm)
            if gaps[1] < CLOSED * gaps[0]:
                break
            found.append(f"a {kind} of distance {gaps[0]:.2f} becomes {gaps[1]:.2f}")
        else:
            what = "statistics leave" if with_norm else "aligned features leave"
            raise CheckFailed(f"{what} a known gap open: {'; '.join(found)}")


def _ensure_prior_stays(case: MethodCase, with_norm: bool) -> None:
    """Ensure that under the true class weights a label shift moves no class."""
    world = known_shift("label", _ROWS, _ROWS)
    weights = world.target_prior / world.task.source_prior
    source, target = _seen(case, world, with_norm, class_weights=weights)
    apart = []
    for label in range(world.task.num_classes):
        s, t = source[world.source_labels == label], target[world.target_labels == label]
        deviation = s.std(0).clamp_min(1e-6)
        apart.append(float((((s.mean(0) - t.mean(0)) / deviation).square().mean()).sqrt()))
    ensure(
        max(apart) < _APART,
        "classes that are the same at both sites are moved apart where their frequencies differ, by"
        f" {max(apart):.1f} deviations: what is measured of the source counts by the class weights",
    )


def _owned(case: MethodCase, role: str) -> None:
    if role not in case.loaded.spec.roles:
        raise NotApplicable(f"it does not own '{role}'")


def _alone(x: Tensor) -> Tensor:
    return x


def _images(seed: int) -> Tensor:
    """Return smooth colour images of a site, (N, 3, H, W) in [0.1, 0.9]."""
    coarse = torch.rand(_IMAGES, 3, _COARSE, _COARSE, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(0.1 + 0.8 * coarse, size=_EDGE, mode="bilinear")


def _fit_images(method: Method, source: Tensor, target: Tensor) -> None:
    with torch.no_grad():
        method.fit_images(source.clone(), target.clone())


def _aligned(case: MethodCase, method: Method, images: Tensor, domain: str) -> Tensor:
    with torch.no_grad():
        return method.align_images(images.to(case.device), domain).clamp(0.0, 1.0).cpu()


def _gap_of_sites(source: Tensor, target: Tensor) -> float:
    """Return the distance of means and spreads of the channels, over the source's variance."""
    s, t = (x.transpose(0, 1).flatten(1).double() for x in (source, target))
    apart = (s.mean(1) - t.mean(1)).square() + (s.std(1) - t.std(1)).square()
    return float((apart / s.var(1)).mean())


def _made(case: MethodCase, world: KnownShift) -> Method:
    """Make the method for a world, whose every layer is the features."""
    return case.loaded.create(case.loaded.spec.options(), task_of(case, world)).to(case.device)


def _fitted(case: MethodCase, world: KnownShift, finetune: str = "frozen") -> Method:
    method = _made(case, world)
    method.fit_features(MadeFitContext(world, finetune=finetune))
    return method


def _seen(
    case: MethodCase, world: KnownShift, with_norm: bool, class_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return features of both domains (N, D), (M, D) as the model sees them after fitting."""
    method = _made(case, world)
    # A frozen run has no layers to normalise, and the other kind is trained.
    ctx = MadeFitContext(
        world,
        finetune="full" if with_norm else "frozen",
        class_weights=class_weights,
        with_norm=with_norm,
    )
    statistics: dict[str, Moments] = method.norm_statistics(ctx) if with_norm else {}
    _ensure_fitting(statistics, ctx)
    both = (
        ctx.normalised(world.source_features, {}),
        ctx.normalised(world.target_features, statistics),
    )
    if "features" not in case.loaded.spec.roles:
        return both
    with torch.no_grad():
        method.fit_features(ctx)
        domains = zip(both, ("source", "target"), strict=True)
        source, target = (method.align_features(x.to(case.device), d).cpu() for x, d in domains)
    return source, target


def _ensure_fitting(statistics: dict[str, Moments], ctx: MadeFitContext) -> None:
    layers = ctx.norm_layers()
    for name, (mean, var) in statistics.items():
        ensure(name in layers, f"norm_statistics() names {name!r}, which is no layer")
        ensure(
            mean.shape == var.shape == layers[name].mean.shape,
            f"norm_statistics() has other shapes than a mean and a variance of '{name}'",
        )
        ensure(
            bool((mean.isfinite() & var.isfinite() & (var >= 0)).all()),
            f"norm_statistics() has a negative variance or no finite number for '{name}'",
        )


def _gaps(case: MethodCase, world: KnownShift, with_norm: bool) -> tuple[float, float]:
    """Return the distance of the domains before and after."""
    ctx = MadeFitContext(world, with_norm=with_norm)
    plain = (ctx.normalised(x, {}) for x in (world.source_features, world.target_features))
    pairs = (tuple(plain), _seen(case, world, with_norm))
    before, after = (replace(world, source_features=s).gap(t) for s, t in pairs)
    return before, after


ROLE_CHECKS = (
    aligned_images,
    known_appearance,
    aligned_features,
    aligned_batches,
    known_statistics,
)
