"""Gradual unfreezing: when a stage is trained, what stays frozen, and what is written of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from daptkit.assess.summary import summary_text, unfrozen_text
from daptkit.errors import Terminated
from daptkit.method import Method
from daptkit.recipes import adapt
from daptkit.train.gradual import Gradual
from daptkit.train.loop import Trainer
from fakes import in_process, make_job, method_of, tiny_config, write_weights
from tiny_nets import tiny_net


def gradual(folder: Path, **values: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    options = {**write_weights(folder), "finetune": "gradual", "epochs": 3, "batch_size": 2}
    return tiny_config(folder, **{**options, **values})


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Give the validation loss of each epoch instead of measuring it."""

    def values(context: Any) -> dict[str, float]:
        return {"source_val_loss": losses[context.epoch - 1], **context.logged}

    monkeypatch.setattr("daptkit.train.loop.validation_values", values)


@pytest.mark.parametrize(
    ("losses", "trained", "stopped"),
    [
        ([1.0, 0.9, 0.8, 0.7], [0, 0, 0, 0], False),
        ([1.0, 0.995, 0.9], [0, 1, 1], False),
        # Before anything was unfrozen a rise is no reason to stop.
        ([1.0, 1.5], [0, 1], False),
        ([1.0, 1.0, 1.04, 0.9], [0, 1, 2, 2], False),
        ([1.0, 1.0, 0.8, 0.9, 0.5, 0.5], [0, 1, 1, 1, 1, 1], True),
        ([1.0, 1.0, float("nan"), 1.0], [0, 1, 1, 1], True),
        ([1.0] * 8, [0, 1, 2, 3, 4, 5, 5, 5], False),
    ],
)
def test_the_rule(losses: list[float], trained: list[int], stopped: bool) -> None:
    net = tiny_net()
    rule = Gradual(net)
    seen, names = [], []
    for loss in losses:
        change = rule.after_epoch(loss)
        names += [] if change is None else [*change.stages]
        seen.append(rule.state()["trained"])
    assert seen == trained
    assert rule.state()["stopped"] is stopped
    assert names == ["layer4", "layer3", "layer2", "layer1", "conv1+bn1"][: trained[-1]]
    again = Gradual(tiny_net())
    again.load_state(rule.state())
    assert again.after_epoch(0.1) is None and again.state()["trained"] == trained[-1]


def test_what_is_frozen_stays_in_eval_mode_and_what_is_not_is_trained() -> None:
    net = tiny_net()
    rule = Gradual(net)
    net.train()
    assert net.frozen and not any(m.training for m in net.backbone.modules())
    rule.after_epoch(1.0)
    rule.after_epoch(1.0)
    net.train()
    norms = {n: m for n, m in net.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {n for n, m in norms.items() if m.training} == {
        n for n in norms if n.startswith("layer4")
    }
    for name, parameter in net.backbone.named_parameters():
        assert parameter.requires_grad == name.startswith("layer4"), name
    before = {name: value.clone() for name, value in net.backbone.state_dict().items()}
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.rand(4, 3, 32, 32))[0].square().mean().backward()
    optimiser.step()
    moved = {
        n.split(".")[0] for n, v in net.backbone.state_dict().items() if not v.equal(before[n])
    }
    assert moved == {"layer4"}
    for _ in range(4):
        rule.after_epoch(1.0)
    net.train()
    assert all(m.training for m in net.modules())
    net.eval()
    assert not any(m.training for m in net.modules())


def test_a_transformer_is_unfrozen_block_by_block() -> None:
    net = tiny_net("test_vit")
    rule = Gradual(net)
    named = []
    for _ in range(20):
        change = rule.after_epoch(1.0)
        named += [] if change is None else [*change.stages]
        net.zero_grad()
        net.train()(torch.rand(2, 3, 32, 32))[0].square().mean().backward()
        reached = {n for n, p in net.backbone.named_parameters() if p.grad is not None}
        assert reached == {n for n, p in net.backbone.named_parameters() if p.requires_grad}
    blocks = len([*net.backbone.get_submodule("blocks").children()])
    assert named[0] == f"blocks.{blocks - 1}+norm" and len(named) == blocks + 1
    assert named[1] == f"blocks.{blocks - 2}" and "patch_embed" in named[-1]


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_unfreezing_keeps_momentum_and_moves_the_new_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opt: str
) -> None:
    scripted(monkeypatch, [1.0, 1.0, 1.0])
    job, _ = make_job(gradual(tmp_path, opt=opt, layer_decay=0.5))
    trainer = Trainer(job)
    optimizer, head = trainer.updater.optimizer, job.net.head.weight
    start = {n: p.detach().clone() for n, p in job.net.backbone.named_parameters()}
    held: list[tuple[int, float]] = []

    def spy(*_: Any) -> None:
        state = optimizer.state[head]
        key = "momentum_buffer" if opt == "sgd" else "exp_avg"
        if trainer.step in (100, 101):
            held.append((trainer.step, float(state[key].norm())))

    optimizer.register_step_pre_hook(spy)
    trainer.run()
    assert trainer.updater.optimizer is optimizer
    assert [step for step, norm in held if norm > 0] == [100, 101]
    moved = {n for n, p in job.net.backbone.named_parameters() if not p.equal(start[n])}
    assert moved == {n for n in start if n.startswith("layer4")}


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_every_stage_can_be_unfrozen_while_others_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opt: str, layer_decay: float | None
) -> None:
    scripted(monkeypatch, [1.0] * 7)
    job, _ = make_job(gradual(tmp_path, opt=opt, layer_decay=layer_decay, epochs=7))
    start = {n: p.detach().clone() for n, p in job.net.backbone.named_parameters()}
    Trainer(job).run()
    assert not [n for n, p in job.net.backbone.named_parameters() if p.equal(start[n])]


def noisy(kill_at: int | None = None) -> type[Method]:
    """A method with a parameter and random numbers, which may terminate its own process."""

    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        if ctx.step == kill_at:
            os.kill(os.getpid(), signal.SIGTERM)
        shake = torch.rand((), generator=ctx.generator) + torch.rand(())
        gap = self.weigh(target.features.mean(0) - source.features.mean(0))
        return {"pull": gap.square().sum() * shake}

    made = method_of(losses)

    def create(self: Any, options: Any, task: Any) -> None:
        Method.__init__(self, options, task)
        self.weigh = nn.Linear(16, 1)

    return type("Noisy", (made,), {"__init__": create})


@pytest.mark.parametrize("kill_at", [99, 100, 130, 149])
def test_a_run_terminated_around_an_unfreezing_continues_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """A stage is unfrozen after steps 100 and 150."""
    scripted(monkeypatch, [1.0, 1.0, 1.0, 1.0])

    def trained(out: str, kill: int | None = None) -> tuple[bytes, dict[str, torch.Tensor]]:
        config = gradual(tmp_path, epochs=4, dropout=0.2, aug="digits", opt="adamw")
        job, _ = make_job(config, in_process(noisy(kill)), out=tmp_path / out)
        Trainer(job).run()
        return job.folder.metrics.read_bytes(), job.net.state_dict()

    whole_metrics, whole = trained("whole")
    assert whole_metrics.count(b'"kind": "unfreeze"') == 2
    with pytest.raises(Terminated):
        trained("cut", kill_at)
    metrics, weights = trained("cut")
    assert metrics == whole_metrics
    assert all(torch.equal(weights[name], whole[name]) for name in whole)


def test_every_step_is_written_told_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DAPTKIT_CACHE", str(tmp_path / "cache"))
    scripted(monkeypatch, [1.0, 1.0, 2.0, 1.0])
    config = gradual(tmp_path, method="coral", epochs=4)
    result = adapt(config)
    lines = [json.loads(line) for line in (result.out / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["kind"] == "unfreeze"]
    assert found == [
        {
            "kind": "unfreeze",
            "step": 100,
            "epoch": 2,
            "stages": ["layer4"],
            "source_val_loss": 1.0,
            "trained": 1,
            "of": 5,
        },
        {**found[0], "step": 150, "epoch": 3, "stages": [], "source_val_loss": 2.0},
    ]
    assert result.data["figures"]["unfreezing"] == {"source-only": found, "adapted": found}
    told = "layer4 after epoch 2; stopped after epoch 3, when the validation loss had risen"
    assert f"unfrozen, adapted: {told} (1 of 5 stages)" in summary_text(result.data["figures"])
    again = adapt(gradual(tmp_path, method="coral", epochs=4, out=str(tmp_path / "again")))
    assert again.data["twin"] == "cached"
    assert again.data["figures"]["unfreezing"] == result.data["figures"]["unfreezing"]


def test_nothing_unfrozen_is_said() -> None:
    assert unfrozen_text([]) == "nothing of the backbone"
