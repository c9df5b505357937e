"""One training step: what methods see, and what they may return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from daptkit.errors import NonFiniteLossError, PluginError
from daptkit.method import Method
from daptkit.train.domains import DomainInputs
from daptkit.train.loop import Trainer
from daptkit.train.step import Step
from fakes import in_process, make_job, method_of, tiny_config


def inputs(n: int, *, labels: bool, seed: int = 0) -> DomainInputs:
    generator = torch.Generator().manual_seed(seed)
    return DomainInputs(
        inputs=torch.rand(n, 1, 16, 16, generator=generator),
        rows=torch.arange(n),
        groups=torch.arange(n),
        labels=torch.arange(n) % 3 if labels else None,
    )


def step_of(tmp_path: Path, *methods: Any) -> Step:
    job, _ = make_job(tiny_config(tmp_path), *methods)
    return Step(job.net, job.methods, job.packages).eval()


def run(step: Step, source: DomainInputs, target: DomainInputs | None, weights: list[float]) -> Any:
    return step(
        source,
        target,
        progress=0.0,
        step=0,
        class_weights=torch.tensor(weights),
        target_prior=None,
        from_trunk=False,
        generator=torch.Generator(),
    )


def test_classification_loss_is_the_weighted_mean(tmp_path: Path) -> None:
    step = step_of(tmp_path)
    source = inputs(7, labels=True)
    result = run(step, source, None, [2.0, 0.5, 0.0])
    with torch.no_grad():
        logits, _ = step.net(source.inputs)
    total, mass = 0.0, 0.0
    for row, label in zip(logits.double(), source.labels, strict=True):
        weight = [2.0, 0.5, 0.0][int(label)]
        total += weight * float(torch.logsumexp(row, 0) - row[label])
        mass += weight
    assert float(result.losses["classification"].detach()) == pytest.approx(total / mass, rel=1e-5)
    assert set(result.losses) == {"classification"}


def test_methods_see_both_domains_and_never_target_labels(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        seen.update(source=source, target=target, extra=ctx.forward(target.inputs))
        ctx.log("size", target.logits.new_tensor(float(len(target))))
        return {"a": target.features.mean(), "b": source.features.sum() * 0}

    step = step_of(tmp_path, in_process(method_of(losses)))
    source, target = inputs(5, labels=True), inputs(3, labels=False, seed=1)
    result = run(step, source, target, [1.0, 2.0, 3.0])
    assert (len(seen["source"]), len(seen["target"])) == (5, 3)
    assert seen["target"].labels is None
    assert torch.equal(seen["target"].weights, torch.ones(3))
    assert seen["source"].weights.tolist() == [1.0, 2.0, 3.0, 1.0, 2.0]
    torch.testing.assert_close(seen["extra"].logits, seen["target"].logits)
    with torch.no_grad():
        alone, _ = step.net(target.inputs)
    torch.testing.assert_close(seen["target"].logits.detach(), alone)
    assert set(result.losses) == {"classification", "fake/a", "fake/b"}
    assert float(result.logs["fake/size"]) == 3.0
    total = sum(float(v.detach()) for v in result.losses.values())
    assert float(result.total.detach()) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda *_: torch.zeros(()), "Tensor instead of a dict"),
        (lambda *_: {"x": torch.zeros(2)}, r"'x' must be a scalar tensor, not \(2,\)"),
        (lambda *_: {"x": 1.0}, "'x' must be a scalar tensor, not float"),
        (lambda *_: 1 / 0, r"failed in losses\(\): ZeroDivisionError"),
    ],
)
def test_a_broken_method_is_named(tmp_path: Path, returned: Any, words: str) -> None:
    step = step_of(tmp_path, in_process(method_of(returned)))
    with pytest.raises(PluginError, match=words) as caught:
        run(step, inputs(4, labels=True), inputs(4, labels=False), [1.0, 1.0, 1.0])
    assert "'fake' (daptkit-fake 1.2)" in str(caught.value)


def test_an_unused_parameter_is_a_plugin_fault(tmp_path: Path) -> None:
    class Forgetful(Method):
        def __init__(self, options: Any, task: Any) -> None:
            super().__init__(options, task)
            self.used = nn.Linear(16, 1)
            self.forgotten = nn.Linear(16, 1)

        def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
            return {"x": self.used(target.features).mean()}

    job, _ = make_job(tiny_config(tmp_path), in_process(Forgetful))
    with pytest.raises(PluginError, match=r"do not use: forgotten\.weight, forgotten\.bias"):
        Trainer(job).run()


def test_a_loss_that_is_not_finite_stops_by_name_and_keeps_the_last_state(tmp_path: Path) -> None:
    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        bad = float("nan") if ctx.step >= 70 else 0.0
        return {"drift": target.features.mean() * bad}

    job, _ = make_job(tiny_config(tmp_path, epochs=3), in_process(method_of(losses)))
    with pytest.raises(NonFiniteLossError, match=r"'fake/drift' is not finite at step 70"):
        Trainer(job).run()
    again, _ = make_job(tiny_config(tmp_path, epochs=3), in_process(method_of(losses)))
    kept = Trainer(again)
    assert kept.step == 50
    assert all(torch.isfinite(p).all() for p in kept.module.parameters())


def test_bf16_trains(tmp_path: Path) -> None:
    job, _ = make_job(tiny_config(tmp_path, amp=True))
    Trainer(job).run()
    assert all(torch.isfinite(p).all() for p in job.net.parameters())
