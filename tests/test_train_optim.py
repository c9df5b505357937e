"""Learning rates of every group, schedules, clipping and what a step may not do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from daptkit.config import AdaptConfig
from daptkit.errors import NonFiniteLossError, PluginError, UsageError
from daptkit.method import Method
from daptkit.train.checks import check_scale
from daptkit.train.loop import Trainer
from daptkit.train.optim import schedule_factor, set_learning_rate
from daptkit.train.strategy import apply_strategy
from daptkit.train.update import Updater
from fakes import in_process, make_job, method_of, tiny_config


class Critic(Method):
    """A method with parameters in two groups."""

    def __init__(self, options: Any, task: Any) -> None:
        super().__init__(options, task)
        self.slow, self.fast = nn.Linear(16, 4), nn.Linear(4, 1)

    def param_groups(self) -> list[dict[str, Any]]:
        return [
            {"params": self.slow.parameters(), "lr_scale": 0.25},
            {"params": self.fast.parameters()},
        ]

    def losses(self, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        return {"x": self.fast(self.slow(target.features)).square().mean()}


@pytest.mark.parametrize(
    ("name", "progress", "factor"),
    [
        ("inverse", 0.0, 1.0),
        ("inverse", 0.5, 6.0**-0.75),
        ("inverse", 1.0, 11.0**-0.75),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.25, 0.5 * (1 + math.sqrt(0.5))),
        ("cosine", 1.0, 0.0),
    ],
)
def test_schedules(name: str, progress: float, factor: float) -> None:
    assert schedule_factor(name, progress) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_every_group_gets_its_own_rate(tmp_path: Path, opt: str) -> None:
    config = tiny_config(tmp_path, backbone_lr_scale=0.1, lr=0.02, opt=opt)
    job, _ = make_job(config, in_process(Critic))
    trainer = Trainer(job)
    set_learning_rate(trainer.updater.optimizer, 0.02, 0.5)
    scales = {"head": 1.0, "backbone": 0.1}
    critic = iter([0.25, 1.0])
    for group in trainer.updater.optimizer.param_groups:
        scale = scales.get(group["name"]) or next(critic)
        assert group["lr"] == pytest.approx(0.02 * 0.5 * scale), group["name"]
    held = {id(p) for g in trainer.updater.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in trainer.module.parameters()}


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
@pytest.mark.parametrize("sched", AdaptConfig.__dataclass_fields__["sched"].metadata["choices"])
def test_layer_decay_is_the_rate_that_each_layer_is_stepped_with(
    tmp_path: Path, sched: str, opt: str
) -> None:
    """What the optimiser reads at its steps, not what was asked for."""
    config = tiny_config(tmp_path, opt=opt, sched=sched, layer_decay=0.5, backbone_lr_scale=0.2)
    job, _ = make_job(config, in_process(Critic))
    trainer = Trainer(job)
    rates: list[dict[str, float]] = []

    def spy(*_: Any) -> None:
        names = {id(p): n for n, p in trainer.module.named_parameters()}
        groups = trainer.updater.optimizer.param_groups
        rates.append({names[id(p)]: g["lr"] for g in groups for p in g["params"]})

    trainer.updater.optimizer.register_step_pre_hook(spy)
    trainer.run()
    scales = {"fc1": 0.2, "conv2": 0.1, "conv1": 0.05}
    for step in (0, 13, 25, 49):
        factor = schedule_factor(sched, step / 50)
        assert set(rates[step]) == {n for n, _ in trainer.module.named_parameters()}
        for name, rate in rates[step].items():
            parts = name.split(".")
            scale = scales[parts[2]] if "backbone" in parts else 0.25 if "slow" in parts else 1.0
            assert rate == pytest.approx(config.lr * factor * scale, rel=1e-9), (step, name)


def test_layer_decay_moves_early_layers_less(tmp_path: Path) -> None:
    def moved(decay: float | None) -> dict[str, float]:
        config = tiny_config(tmp_path, layer_decay=decay, weight_decay=0.0, epochs=1)
        job, _ = make_job(config, in_process(Critic), out=tmp_path / f"run{decay}")
        before = {n: p.detach().clone() for n, p in job.net.backbone.named_parameters()}
        Trainer(job).run()
        after = dict(job.net.backbone.named_parameters())
        return {n: float((after[n] - p).detach().norm()) for n, p in before.items()}

    plain, one, decayed = moved(None), moved(1.0), moved(0.1)
    assert one == pytest.approx(plain, rel=1e-4)
    assert decayed["conv1.weight"] < 0.1 * plain["conv1.weight"]
    assert decayed["conv2.weight"] < 0.5 * plain["conv2.weight"]


def test_layer_decay_needs_layers_that_are_trained(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, layer_decay=0.5)
    job, _ = make_job(config)
    with pytest.raises(UsageError, match="--finetune frozen does not train"):
        apply_strategy(job.net, replace(config, finetune="frozen"), loaded=True)
    job.net.backbone = nn.Linear(4, 4)
    with pytest.raises(UsageError, match="use --backbone-lr-scale"):
        apply_strategy(job.net, config, loaded=True)


def test_a_rate_of_zero_moves_nothing(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, backbone_lr_scale=0.0, weight_decay=0.0)
    job, _ = make_job(config, in_process(Critic))
    before = {name: p.detach().clone() for name, p in job.net.named_parameters()}
    Trainer(job).run()
    after = dict(job.net.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n in before if not n.startswith("backbone.")}


@pytest.mark.parametrize("clip", [None, 0.01])
def test_gradients_are_clipped_to_the_given_norm(tmp_path: Path, clip: float | None) -> None:
    config = tiny_config(tmp_path, clip_grad=clip)
    job, _ = make_job(config, in_process(Critic))
    trainer = Trainer(job)
    norms: list[float] = []

    def spy(*_: Any) -> None:
        grads = [p.grad for p in trainer.module.parameters()]
        norms.append(float(torch.stack([g.double().square().sum() for g in grads]).sum().sqrt()))

    trainer.updater.optimizer.register_step_pre_hook(spy)
    trainer.run()
    assert len(norms) == 50
    if clip is None:
        assert max(norms) > 0.1
    else:
        assert max(norms) <= clip * 1.001


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (lambda self: [{"params": self.slow.parameters()}], "left parameters out.*fast.bias"),
        (lambda self: [{"params": [*self.parameters(), self.fast.bias]}], "is there twice"),
        (lambda self: [{"params": [nn.Parameter(torch.ones(1))]}], "not its own"),
        (lambda self: [{"lr": 1.0}], r"failed in param_groups\(\): KeyError"),
    ],
)
def test_faulty_parameter_groups_are_named(tmp_path: Path, groups: Any, words: str) -> None:
    faulty = type("Faulty", (Critic,), {"param_groups": groups})
    job, _ = make_job(tiny_config(tmp_path), in_process(faulty))
    with pytest.raises(PluginError, match=words) as caught:
        Trainer(job)
    assert "'fake' (daptkit-fake 1.2)" in str(caught.value)


def test_a_gradient_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    """The root of zero is finite and its slope is not: the loss alone shows nothing."""

    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        scale = 0.0 if ctx.step == 99 else 1.0
        return {"root": (target.features.square().sum() * scale).sqrt() * 1e-3}

    job, _ = make_job(tiny_config(tmp_path, epochs=3), in_process(method_of(losses)))
    with pytest.raises(NonFiniteLossError, match=r"not finite: .* was lost before step 100"):
        Trainer(job).run()
    again, _ = make_job(tiny_config(tmp_path, epochs=3), in_process(method_of(losses)))
    assert Trainer(again).step == 50


def test_a_backward_pass_that_raises_names_the_methods(tmp_path: Path) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.mean()

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            raise RuntimeError("no way back")

    method = method_of(lambda self, source, target, ctx: {"x": Broken.apply(target.features)})
    job, _ = make_job(tiny_config(tmp_path), in_process(method))
    with pytest.raises(PluginError, match=r"'fake' \(daptkit-fake 1.2\) failed in the backward"):
        Trainer(job).run()


def test_a_streak_of_overflows_stops_the_run() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    check_scale(scaler, 10)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-20)
    with pytest.raises(NonFiniteLossError, match="--amp-dtype bfloat16"):
        check_scale(scaler, 10)


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_an_overflow_at_the_first_step_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opt: str
) -> None:
    # What new memory holds is up to chance; here it is the worst.
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, float("nan")))

    def weights(slopes: list[float]) -> torch.Tensor:
        job, _ = make_job(tiny_config(tmp_path, opt=opt))
        optimizer = Updater(job).optimizer
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for slope in slopes:
            scaler.scale((job.net.head.weight * slope).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return job.net.head.weight.detach()

    assert torch.equal(weights([float("inf"), 1.0, 1.0]), weights([1.0, 1.0]))
