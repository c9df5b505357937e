"""Checks of what owners of the roles ``features`` and ``norm`` make of features and statistics."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from daptkit.errors import PluginError
from daptkit.method import Method
from daptkit.testing.answer_checks import CLOSED, task_of
from daptkit.testing.case import CheckFailed, MethodCase, NotApplicable, ensure, gradients, same
from daptkit.testing.fit import MadeFitContext, Moments
from daptkit.testing.processes import Gather, losses_of_two_processes
from daptkit.testing.worlds import KnownShift, known_shift

_ROWS = 600
_UNMOVED = 0.02
"""Distance of domains that counts as none."""
_APART = 0.4
"""Deviations between the means of a class at both sites that are too much; chance makes 0.1."""


def aligned_features(case: MethodCase) -> None:
    """Aligned features keep their shape and stay finite, row by row, and all state is kept."""
    _ensure_owner(case)
    for kind in ("move", "collapsed"):
        world = known_shift("move", _ROWS, _ROWS)
        if kind == "collapsed":
            world = replace(world, target_features=torch.full_like(world.target_features, 2.0))
        method, anew = _fitted(case, world).eval(), _made(case, world).eval()
        anew.load_state_dict({name: x.clone() for name, x in method.state_dict().items()})
        for domain, rows in (("source", world.source_features), ("target", world.target_features)):
            x = rows.to(case.device)
            found = method.align_features(x.clone(), domain)
            ensure(found.shape == x.shape, f"the shape of {domain} features changed")
            ensure(bool(found.isfinite().all()), f"{domain} features are not finite ({kind})")
            ensure(
                same(method.align_features(x[:1].clone(), domain), found[:1]),
                f"what becomes of a row of the {domain} depends on others",
            )
            ensure(
                torch.equal(anew.align_features(x.clone(), domain), found),
                "not all that was fitted is in buffers",
            )


def aligned_batches(case: MethodCase) -> None:
    """Batches close a known gap, with a gradient, by rows that have a weight, over processes."""
    _ensure_owner(case)
    world = known_shift("move", _ROWS, _ROWS)
    method = _fitted(case, world, finetune="full")
    weights = torch.linspace(0.4, 1.9, 8, device=case.device)
    for domain in ("source", "target"):
        x = _rows(world, domain)[:8].to(case.device).requires_grad_()
        aligned = functools.partial(_in_training, case, method, world, domain)
        whole = aligned(x, weights)
        ensure(whole.shape == x.shape, f"the shape of {domain} features changed")
        ensure(bool(whole.isfinite().all()), f"{domain} features of a batch are not finite")
        # Random, since the rows of standardised features sum to the same whatever they are.
        pull = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0)).to(whole)
        (gradient,) = gradients((whole * pull).sum(), [x])
        ensure(
            bool(gradient.isfinite().all()) and bool((gradient != 0).any()),
            f"no gradient reaches the {domain}'s features, or none that is finite",
        )
        absent = weights.clone()
        absent[5:] = 0.0
        ensure(
            same(aligned(x, absent)[:5], aligned(x[:5], weights[:5])),
            f"{domain} rows of weight 0 count: the weights are not honoured",
        )
        _ensure_one_batch(aligned, x, weights, whole, domain)
    found = []
    for kind in ("move", "stretch"):
        world = known_shift(kind, _ROWS, _ROWS)
        method, ones = _fitted(case, world, finetune="full"), torch.ones(_ROWS, device=case.device)
        pair = (
            _in_training(case, method, world, d, _rows(world, d).to(case.device), ones)
            for d in ("source", "target")
        )
        gaps = world.gap(world.target_features), _gap(world, *(x.detach().cpu() for x in pair))
        if gaps[1] < CLOSED * gaps[0]:
            return
        found.append(f"a {kind} of distance {gaps[0]:.2f} becomes {gaps[1]:.2f}")
    raise CheckFailed(f"aligned batches leave a known gap open: {'; '.join(found)}")


def known_statistics(case: MethodCase) -> None:
    """Statistics undo half of a move or stretch; domains that agree, or differ by prior, stay."""
    owned = case.loaded.spec.roles & {"features", "norm"}
    if not owned:
        raise NotApplicable("it owns neither features nor normalisation statistics")
    for with_norm in sorted(role == "norm" for role in owned):
        equal = known_shift("none", 2 * _ROWS, _ROWS)
        train = MadeFitContext(equal).predict("source_train").features
        gap = _gaps(case, replace(equal, target_features=train), with_norm)[1]
        ensure(gap < _UNMOVED, f"domains that are the same are brought apart, by {gap:.2f}")
        if case.needs_source:
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
    world = known_shift("label", 4 * _ROWS, 2 * _ROWS)
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


def _ensure_owner(case: MethodCase) -> None:
    if "features" not in case.loaded.spec.roles:
        raise NotApplicable("it does not own 'features'")


def _alone(x: Tensor) -> Tensor:
    return x


def _rows(world: KnownShift, domain: str) -> Tensor:
    return world.source_features if domain == "source" else world.target_features


def _made(case: MethodCase, world: KnownShift) -> Method:
    """Make the method for a world whose trunk is wider than its bottleneck."""
    task = task_of(case, world)
    dims = {**task.dims, "features": task.dims["features"] - 1}
    with case.seeded():
        made = case.loaded.create(case.loaded.spec.options(), replace(task, dims=dims))
    return made.to(case.device)


def _fitted(case: MethodCase, world: KnownShift, finetune: str = "frozen") -> Method:
    method = _made(case, world)
    method.fit_features(MadeFitContext(world, finetune=finetune))
    return method


def _in_training(
    case: MethodCase,
    method: Method,
    world: KnownShift,
    domain: str,
    x: Tensor,
    weights: Tensor,
    gather: Gather = _alone,
) -> Tensor:
    """Return what one step makes of a batch; the method itself stays as it was fitted."""
    used = copy.deepcopy(method).train()
    if domain == "target":  # a step passes the source first
        ones = torch.ones(len(world.source_features), device=case.device)
        used.align_batch(world.source_features.to(case.device), "source", ones, _alone)
    return used.align_batch(x.clone(), domain, weights, gather)


def _ensure_one_batch(
    aligned: Callable[..., Tensor], x: Tensor, weights: Tensor, whole: Tensor, domain: str
) -> None:
    """Ensure that two processes with half a batch each do what one does with the whole."""

    def rows(part: slice, gather: Gather) -> dict[str, Tensor]:
        return {"rows": aligned(x[part], weights[part], gather=gather)}

    split = losses_of_two_processes(rows, slice(0, 4), slice(4, 8))["rows"]
    ensure(
        same(split, whole[:4]),
        f"two processes align other {domain} features than one with the whole batch: gather what"
        " they are aligned by",
    )


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
    statistics = _statistics(case, world, ctx) if with_norm else {}
    source = ctx.normalised(world.source_features, {})
    target = ctx.normalised(world.target_features, statistics)
    if "features" in case.loaded.spec.roles:
        method.fit_features(ctx)
        method.eval()
        with torch.no_grad():
            source = method.align_features(source.clone().to(case.device), "source").cpu()
            target = method.align_features(target.clone().to(case.device), "target").cpu()
    varies = all(float(x.std(0).max()) > 0 for x in (source, target))
    ensure(varies, "every image of a domain has the same features then")
    return source, target


def _statistics(case: MethodCase, world: KnownShift, ctx: MadeFitContext) -> dict[str, Moments]:
    """Return the statistics of a world if a run would take them, and they depend on it alone."""
    # Imports of the trainer take seconds, which the tests of a loss should not wait for.
    from daptkit.train.aligning import checked_statistics

    shapes = {name: layer.mean.shape for name, layer in ctx.norm_layers().items()}
    method, taken = _made(case, world), []
    for asked in (method, method, _made(case, world)):
        try:
            taken.append(checked_statistics(asked.norm_statistics(ctx), shapes, "it"))
        except PluginError as error:
            raise CheckFailed(str(error)) from error
    first = taken[0]
    for again in taken[1:]:
        kept = first.keys() == again.keys() and all(
            same(a, b) for name in first for a, b in zip(first[name], again[name], strict=True)
        )
        ensure(kept, "norm_statistics() returns others when it is asked again of the same model")
    return dict(first)


def _gap(world: KnownShift, source: Tensor, target: Tensor) -> float:
    return replace(world, source_features=source).gap(target)


def _gaps(case: MethodCase, world: KnownShift, with_norm: bool) -> tuple[float, float]:
    """Return the distance of the domains before and after."""
    ctx = MadeFitContext(world, with_norm=with_norm)
    plain = (ctx.normalised(x, {}) for x in (world.source_features, world.target_features))
    return _gap(world, *plain), _gap(world, *_seen(case, world, with_norm))


FEATURE_CHECKS = (aligned_features, aligned_batches, known_statistics)
