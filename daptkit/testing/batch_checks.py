"""Checks of a method on odd batches, other precisions, other devices and several processes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from daptkit.method import DomainBatch
from daptkit.testing.case import (
    MethodCase,
    NotApplicable,
    Pair,
    ensure,
    gradients,
    leaves_again,
    map_batch,
    number,
    same,
)
from daptkit.testing.loss_checks import reads_source
from daptkit.testing.processes import losses_of_two_processes
from daptkit.testing.reads import Reads

_DROPPED = 3


def zero_weight_is_absence(case: MethodCase) -> None:
    """A source image of weight 0 is as good as not there, for losses and gradients."""
    pair = case.pair(9, 5)
    if pair.source is None or not reads_source(case):
        raise NotApplicable("it does not read the source")
    kept = len(pair.source) - _DROPPED
    weights = pair.source.weights.clone()
    weights[kept:] = 0.0
    weighted = Pair(replace(pair.source, weights=weights), pair.target)
    shorter = Pair(leaves_again(map_batch(pair.source, lambda x: x[:kept])), pair.target)
    found, expected = case.call(weighted).total, case.call(shorter).total
    ensure(
        same(found, expected),
        "source.weights are not honoured: an image of weight 0 changes the loss"
        f" ({number(expected):.6g} without it, {number(found):.6g} with it)",
    )
    assert weighted.source is not None and shorter.source is not None
    sent = gradients(found, list(weighted.source.taps.values()))
    alone = gradients(expected, list(shorter.source.taps.values()))
    ensure(
        all(same(a[:kept], b) for a, b in zip(sent, alone, strict=True)),
        "source.weights are not honoured: an image of weight 0 changes the others' gradient",
    )
    stray = max(number(g[kept:].abs().max()) for g in sent)
    ensure(stray < 1e-6, "source.weights are not honoured: an image of weight 0 gets a gradient")


def weights_move_loss(case: MethodCase) -> None:
    """Other source weights give another loss."""
    pair = case.pair(9, 5)
    if pair.source is None or not reads_source(case):
        raise NotApplicable("it does not read the source")
    ones = Pair(replace(pair.source, weights=torch.ones_like(pair.source.weights)), pair.target)
    ensure(
        not same(case.call(pair).total, case.call(ones).total, 1e-6),
        "the loss is the same under any source.weights: '-m yours+bbse' would do nothing",
    )


def meta_device(case: MethodCase) -> None:
    """A step runs on a device that is not the CPU, and reads no value of a tensor."""
    elsewhere = case.at("meta")
    pair = elsewhere.pair()
    result = elsewhere.call(pair)
    for name, value in result.losses.items():
        ensure(
            value.device.type == "meta",
            f"loss '{name}' is made on {value.device}, whatever the device of the batch",
        )
    torch.autograd.backward(result.total)


def no_synchronisation(case: MethodCase) -> None:
    """A step, forward and backward, never waits for the device."""
    if case.device.type == "cuda":
        _no_synchronisation_of_a_gpu(case)
        return
    pair, method = case.pair(), case.create()
    step = case.step()
    with case.seeded(), Reads() as reads:
        losses = method.losses(pair.source, pair.target, step)
        if losses:
            torch.autograd.backward(list(losses.values()))
    _has_losses(case, losses)
    ensure(
        not reads.found,
        f"a step on a GPU would wait for it, in {', '.join(dict.fromkeys(reads.found))}: keep"
        " numbers on the device, and use masked_fill in place of torch.where with a number",
    )


def _no_synchronisation_of_a_gpu(case: MethodCase) -> None:
    pair, method = case.pair(), case.create()
    # The first step makes what later ones find made.
    torch.autograd.backward(case.call(pair, method=method).total)
    step = case.step()
    torch.cuda.synchronize(case.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = method.losses(pair.source, pair.target, step)
        torch.autograd.backward(list(losses.values()))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def bfloat16(case: MethodCase) -> None:
    """Under mixed precision losses and gradients stay finite, far from 0 too."""
    for offset in (0.0, 100.0):
        pair = case.pair(8, 6)
        half = Pair(*(b and _half(b, offset) for b in (pair.source, pair.target)))  # type: ignore[arg-type]
        with torch.autocast(case.device.type, dtype=torch.bfloat16):
            result = case.call(half)
        _ensure_finite(result.total, half, f"bfloat16 features around {offset:g}")


def degenerate_batches(case: MethodCase) -> None:
    """Equal images, collapsed features and saturated predictions give finite numbers."""
    for features, logits in ((0.0, 0.0), (3.0, 0.0), (0.0, 900.0), (1e-20, -900.0)):
        pair = case.pair()
        flat = Pair(
            *(
                b and leaves_again(replace(b, taps=_constant(b, features, logits)))  # type: ignore[arg-type]
                for b in (pair.source, pair.target)
            )
        )
        _ensure_finite(
            case.call(flat).total, flat, f"features all {features:g}, first logit {logits:g}"
        )
    pair = case.pair()
    if pair.source is not None:
        without = replace(pair.source, weights=torch.zeros_like(pair.source.weights))
        weightless = Pair(without, pair.target)
        _ensure_finite(case.call(weightless).total, weightless, "source weights that sum to 0")


def batch_of_one(case: MethodCase) -> None:
    """One image a domain is enough, for the last, short part of a batch."""
    for n, m in ((1, 1), (1, 5), (5, 1)):
        pair = case.pair(n, m)
        _ensure_finite(case.call(pair).total, pair, f"{n} source and {m} target images")


def one_global_batch(case: MethodCase) -> None:
    """Two processes with half a batch each find losses and gradients of the whole."""
    mine, other = case.pair(4, 3, seed=1), case.pair(4, 3, seed=2, shift=1.5)
    if other.source is not None:
        other = Pair(replace(other.source, weights=3 * other.source.weights), other.target)
    joined = Pair(_joined(mine.source, other.source), _joined(mine.target, other.target))  # type: ignore[arg-type]
    method = case.create()
    whole = case.call(joined, method=method).losses
    split = losses_of_two_processes(
        lambda pair, gather: case.call(pair, method=case.create(), gather=gather).losses,
        mine,
        other,
    )
    ensure(whole.keys() == split.keys(), "the names of losses depend on the batch")
    leaves = [x for pair in (mine, other) for batch in pair.leaves.values() for x in batch]
    for name, value in whole.items():
        found = split[name]
        ensure(
            same(found, value),
            f"two processes find another '{name}' than one with the whole batch: gather what it"
            f" is computed from with ctx.gather ({number(found):.6g} and {number(value):.6g})",
        )
        pairs = zip(gradients(found, leaves), gradients(value, leaves), strict=True)
        ensure(
            all(same(a, b) for a, b in pairs),
            f"the gradient of '{name}' over two processes is not that of the whole batch:"
            " ctx.gather carries it, detached or replaced rows do not",
        )


def _joined(first: DomainBatch | None, second: DomainBatch | None) -> DomainBatch | None:
    """Return the rows of two batches, whose gradients reach both."""
    if first is None or second is None:
        return None
    taps = {name: torch.cat([x, second.taps[name]]) for name, x in first.taps.items()}
    both = [(getattr(first, n), getattr(second, n)) for n in ("inputs", "labels")]
    inputs, labels = (None if a is None else torch.cat([a, b]) for a, b in both)
    return replace(
        first,
        taps=taps,
        logits=taps["logits"],
        inputs=inputs,
        labels=labels,
        weights=torch.cat([first.weights, second.weights]),
        groups=torch.cat([first.groups, second.groups]),
        index=torch.cat([first.index, second.index]),
        views=tuple(_must(_joined(a, b)) for a, b in zip(first.views, second.views, strict=True)),
    )


def _must(batch: DomainBatch | None) -> DomainBatch:
    assert batch is not None
    return batch


def _half(batch: DomainBatch, offset: float) -> DomainBatch:
    """Return a batch whose taps are bfloat16, all but the logits moved."""
    taps = {
        name: (x.detach() + (0.0 if name == "logits" else offset)).bfloat16().requires_grad_()
        for name, x in batch.taps.items()
    }
    views = tuple(_half(view, offset) for view in batch.views)
    return replace(batch, taps=taps, logits=taps["logits"], views=views)


def _constant(batch: DomainBatch, features: float, logits: float) -> dict[str, Tensor]:
    """Return taps that are the same for every image; ``logits`` is that of the first class."""
    taps = {name: torch.full_like(x.detach(), features) for name, x in batch.taps.items()}
    taps["logits"] = torch.zeros_like(batch.logits.detach())
    taps["logits"][:, 0] = logits
    return taps


def _ensure_finite(total: Tensor, pair: Pair, where: str) -> None:
    ensure(bool(torch.isfinite(total)), f"{where}: the loss is {number(total)}")
    for domain, leaves in pair.leaves.items():
        for sent in gradients(total, leaves):
            ensure(
                bool(torch.isfinite(sent).all()),
                f"{where}: the gradient of the {domain} is not finite",
            )


def _has_losses(case: MethodCase, losses: dict[str, Tensor]) -> None:
    if not losses:
        case.call(case.pair())  # says why there are none


BATCH_CHECKS = (
    zero_weight_is_absence,
    weights_move_loss,
    degenerate_batches,
    batch_of_one,
    bfloat16,
    meta_device,
    no_synchronisation,
    one_global_batch,
)
