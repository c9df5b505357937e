"""Checks that a method's state survives: in its state dict, and in an interrupted run."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import torch

from daptkit.errors import UsageError
from daptkit.testing.case import MethodCase, NotApplicable, ensure, number, same, trained

_CUT = 75
"""Step at which the tiny run is cut, in the middle of its second epoch."""


def state_round_trip(case: MethodCase) -> None:
    """A new method with the state of a used one goes on exactly as that one does."""
    used = case.create()
    optimiser = torch.optim.SGD(trained(used), lr=0.01) if trained(used) else None
    for step in range(3):
        total = case.call(case.pair(seed=step), method=used, step=step).total
        if optimiser is not None:
            optimiser.zero_grad()
            torch.autograd.backward(total)
            optimiser.step()
    fresh = case.create()
    fresh.load_state_dict({name: x.clone() for name, x in used.state_dict().items()})
    pair = case.pair(seed=9)
    going_on = case.call(pair, method=used, step=3).losses
    restored = case.call(pair, method=fresh, step=3).losses
    ensure(going_on.keys() == restored.keys(), "a restored method returns other losses")
    for name, value in going_on.items():
        ensure(
            torch.equal(restored[name], value),
            f"a restored method finds another '{name}' ({number(restored[name]):.8g} and"
            f" {number(value):.8g}): what steps depend on has to be a buffer",
        )


def exact_resume(case: MethodCase) -> None:
    """A run of the real trainer that is cut and continued ends like one that was not cut."""
    # Imports of the trainer take seconds, which the tests of a loss should not wait for.
    from daptkit.testing.trainer import FastTrainer, Interrupted, differing

    with tempfile.TemporaryDirectory() as folder:
        trainer = FastTrainer(Path(folder), str(case.device))
        options = {"epochs": 2, "log_interval": 25}
        try:
            whole = trainer.fit(case.loaded, run="whole", **options)
        except UsageError as error:
            raise NotApplicable(f"the host refuses a run with it: {error}") from error
        with contextlib.suppress(Interrupted):
            trainer.fit(case.loaded, run="cut", stop_at=_CUT, **options)
        again = trainer.fit(case.loaded, run="cut", **options)
    if case.device.type == "cuda":  # sums are rounded in no fixed order there
        other = [n for n, x in whole.weights.items() if not same(again.weights[n], x, 1e-2)]
    else:
        other = differing(whole.weights, again.weights)
        ensure(again.metrics == whole.metrics, "a resumed run writes other metrics")
    ensure(
        not other,
        f"a resumed run ends with other weights ({', '.join(other[:3])}): what steps depend on has"
        " to be a buffer",
    )


STATE_CHECKS = (state_round_trip, exact_resume)
