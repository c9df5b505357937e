"""Checks of the losses of a method: what they are, depend on, and leave alone."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor

from daptkit.testing.case import (
    MethodCase,
    NotApplicable,
    Pair,
    ensure,
    gradients,
    map_batch,
    number,
    same,
    tensors_of,
    trained,
)

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def named_scalar_losses(case: MethodCase) -> None:
    """Each loss has a plain name, is one finite number, and carries a gradient."""
    for progress in (0.0, 0.5, 1.0):
        losses = case.call(case.pair(), progress=progress).losses
        for name, value in losses.items():
            ensure(
                isinstance(name, str) and _NAME.fullmatch(name) is not None,
                f"the loss name {name!r} is not lower-case letters, digits and '_'",
            )
            ensure(isinstance(value, Tensor), f"loss '{name}' is {type(value).__name__}")
            ensure(value.dim() == 0, f"loss '{name}' has shape {tuple(value.shape)}, not ()")
            ensure(value.is_floating_point(), f"loss '{name}' is of type {value.dtype}")
            ensure(value.requires_grad, f"loss '{name}' has no gradient")
            ensure(
                bool(torch.isfinite(value)), f"loss '{name}' is {number(value)} at step {progress}"
            )


def target_changes_loss(case: MethodCase) -> None:
    """Other target images give another loss."""
    pair = case.pair()
    other = Pair(pair.source, case.draw(len(pair.target), 99, shift=-1.0))
    first, second = case.call(pair).total, case.call(other).total
    ensure(not same(first, second, 1e-6), "other target images give the same loss: it ignores them")


def gradient_reaches_domains(case: MethodCase) -> None:
    """Features or logits of each domain that a loss is computed from receive a gradient."""
    pair = case.pair()
    total = case.call(pair).total
    for domain, leaves in pair.leaves.items():
        if domain == "source" and not reads_source(case):
            continue
        sent = max(number(g.abs().max()) for g in gradients(total, leaves))
        ensure(sent > 0, f"no gradient reaches the {domain}'s features and logits: nothing aligns")


def every_parameter_is_used(case: MethodCase) -> None:
    """Each parameter of the method receives a gradient from its losses."""
    result = case.call(case.pair())
    if not trained(result.method):
        raise NotApplicable("it has no parameters")
    torch.autograd.backward(result.total)
    unused = [
        name for name, p in result.method.named_parameters() if p.requires_grad and p.grad is None
    ]
    ensure(not unused, f"losses do not use the parameters {', '.join(unused)}")
    idle = [
        name
        for name, p in result.method.named_parameters()
        if p.grad is not None and not bool(p.grad.any())
    ]
    ensure(
        len(idle) < len(trained(result.method)),
        f"the gradient of every parameter is exactly 0: {', '.join(idle)} learn nothing",
    )


def parameter_groups(case: MethodCase) -> None:
    """The optimiser groups hold each parameter once."""
    method = case.create()
    groups = method.param_groups()
    listed = [id(p) for group in groups for p in group["params"]]
    ensure(len(listed) == len(set(listed)), "param_groups() names a parameter twice")
    left_out = [name for name, p in method.named_parameters() if id(p) not in listed]
    ensure(not left_out, f"param_groups() leaves out {', '.join(left_out)}")


def unequal_batches(case: MethodCase) -> None:
    """Batches of different sizes work either way round, and every image counts."""
    for n, m in ((7, 3), (3, 7)):
        pair = case.pair(n, m)
        total = case.call(pair).total
        ensure(bool(torch.isfinite(total)), f"{n} source and {m} target images: {number(total)}")
        for domain, leaves in pair.leaves.items():
            found = gradients(total, leaves)
            rows = torch.stack([g.flatten(1).abs().sum(1) for g in found]).sum(0)
            ensure(
                not bool(rows.any()) or bool((rows > 0).all()),
                f"{n} source and {m} target images: some of the {domain} receive no gradient",
            )


def permutation_invariance(case: MethodCase) -> None:
    """The order of images within a domain does not matter."""
    pair = case.pair(7, 5)
    expected = case.call(pair).total
    for domain, batch in pair.batches.items():
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
        shuffled = map_batch(batch, lambda x, order=order: x[order.to(x.device)])  # type: ignore[misc]
        found = case.call(replace(pair, **{domain: shuffled})).total
        ensure(
            same(found, expected),
            f"the loss depends on the order of {domain} images:"
            f" {number(found):.6g} and {number(expected):.6g}",
        )


def inputs_untouched(case: MethodCase) -> None:
    """Batches are left as they were."""
    leaves = case.pair()
    pair = leaves.mapped(lambda x: x.clone())
    before = {name: [x.clone() for x in tensors_of(b)] for name, b in pair.batches.items()}
    case.call(pair)
    for domain, batch in pair.batches.items():
        for old, new in zip(before[domain], tensors_of(batch), strict=True):
            ensure(torch.equal(old, new), f"a tensor of the {domain} batch is changed in place")


def training_is_the_hosts(case: MethodCase) -> None:
    """No optimiser is stepped, no backward pass run and no mode switched inside ``losses``."""
    pair, method = case.pair(), case.create()
    before = [p.detach().clone() for p in method.parameters()]
    case.call(pair, method=method)
    moved = not all(
        torch.equal(old, new) for old, new in zip(before, method.parameters(), strict=True)
    )
    ensure(not moved, "losses() changes the method's parameters: the host steps the optimiser")
    leaves = [leaf for group in pair.leaves.values() for leaf in group]
    ran = any(x.grad is not None for x in (*leaves, *method.parameters()))
    ensure(not ran, "losses() runs a backward pass: return the losses and leave that to the host")
    ensure(torch.is_grad_enabled(), "losses() leaves gradients switched off")


def reads_source(case: MethodCase) -> bool:
    """Return whether the losses depend on the source's features or logits."""
    pair = case.pair()
    if pair.source is None:
        return False
    other = replace(
        case.draw(len(pair.source), 98, domain="source", shift=-1.0), weights=pair.source.weights
    )
    first, second = case.call(pair).total, case.call(Pair(other, pair.target)).total
    return not same(first, second, 1e-6)


LOSS_CHECKS = (
    named_scalar_losses,
    target_changes_loss,
    gradient_reaches_domains,
    every_parameter_is_used,
    parameter_groups,
    unequal_batches,
    permutation_invariance,
    inputs_untouched,
    training_is_the_hosts,
)
