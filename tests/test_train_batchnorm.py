"""BatchNorm's statistics in training: of both domains, of each by itself, or the loaded ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from daptkit.errors import UsageError
from daptkit.method import Method
from daptkit.recipes import adapt
from daptkit.train.loop import Trainer
from daptkit.train.step import Step
from fakes import in_process, make_job, method_of, tiny_config, write_weights
from test_train_step import inputs, run


def silent() -> Any:
    return in_process(method_of(lambda self, source, target, ctx: {}))


def config_of(folder: Path, **values: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return tiny_config(folder, **{**write_weights(folder), **values})


def taps(folder: Path, bn: str, target_seed: int = 1) -> tuple[Any, Any, Any]:
    """Return source and target features of one training step, and the model."""
    seen: dict[str, Any] = {}

    def losses(self: Method, source: Any, target: Any, ctx: Any) -> dict[str, Any]:
        seen.update(source=source.features.detach(), target=target.features.detach())
        return {}

    job, _ = make_job(config_of(folder, bn=bn), in_process(method_of(losses)))
    step = Step(job.net, job.methods, job.packages, split=bn == "split").train()
    source, target = inputs(6, labels=True), inputs(5, labels=False, seed=target_seed)
    run(step, source, target, [1.0, 1.0, 1.0])
    return seen["source"], seen["target"], job.net


@pytest.mark.parametrize(("bn", "depends"), [("joint", True), ("split", False), ("frozen", False)])
def test_whether_the_source_depends_on_the_target(tmp_path: Path, bn: str, depends: bool) -> None:
    one, _, _ = taps(tmp_path, bn, target_seed=1)
    other, _, _ = taps(tmp_path, bn, target_seed=2)
    assert torch.equal(one, other) is not depends


def test_split_is_each_domain_by_itself(tmp_path: Path) -> None:
    source, target, _ = taps(tmp_path, "split")
    job, _ = make_job(config_of(tmp_path))
    job.net.train()
    for found, images in (
        (source, inputs(6, labels=True)),
        (target, inputs(5, labels=False, seed=1)),
    ):
        _, alone = job.net(images.inputs)
        torch.testing.assert_close(found, alone["features"].detach())


def test_the_first_layers_running_mean_by_hand(tmp_path: Path) -> None:
    """Momentum 0.1: joint sees one batch of eleven, split keeps the five of the target."""
    job, _ = make_job(config_of(tmp_path))
    name, _ = next(iter(job.net.batchnorm().items()))
    before = job.net.backbone.get_submodule(name).running_mean.clone()
    fed: list[torch.Tensor] = []
    layer = job.net.backbone.get_submodule(name)
    layer.register_forward_pre_hook(lambda module, given: fed.append(given[0].detach()))
    job.net.eval()
    for images in (inputs(6, labels=True), inputs(5, labels=False, seed=1)):
        job.net(images.inputs)
    means = [part.mean((0, 2, 3)) for part in (torch.cat(fed), *fed)]
    expected = {
        "joint": 0.9 * before + 0.1 * means[0],
        "split": 0.9 * before + 0.1 * means[2],
        "frozen": before,
    }
    for bn, mean in expected.items():
        _, _, net = taps(tmp_path, bn)
        torch.testing.assert_close(net.backbone.get_submodule(name).running_mean, mean)


def test_frozen_statistics_stay_while_affine_parameters_are_trained(tmp_path: Path) -> None:
    job, _ = make_job(config_of(tmp_path, bn="frozen"), silent())
    before = {name: value.clone() for name, value in job.net.backbone.state_dict().items()}
    Trainer(job).run()
    job.net.train()
    norms = job.net.batchnorm()
    assert norms and not any(layer.training for layer in norms.values())
    others = [m for m in job.net.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.training for m in others)
    after = job.net.backbone.state_dict()
    same = {name for name, value in after.items() if value.equal(before[name])}
    buffers = {name for name, _ in job.net.backbone.named_buffers()}
    assert same == buffers
    assert {f"{name}.weight" for name in norms} <= after.keys() - same


def test_frozen_and_gradual_go_together(tmp_path: Path) -> None:
    job, _ = make_job(config_of(tmp_path, bn="frozen", finetune="gradual"))
    job.net.train_backbone([name for name, _ in job.net.backbone.named_parameters()])
    job.net.train()
    assert not any(layer.training for layer in job.net.batchnorm().values())
    assert job.net.backbone.training


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bn": "split"}, "--bn split: daptkit_lenet has no BatchNorm"),
        ({"bn": "frozen", "model": "test_resnet"}, "and there are none: give --pretrained-path"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        adapt(tiny_config(tmp_path, **values))


def test_a_frozen_backbone_has_no_statistics_to_choose(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--finetune frozen does not run the backbone"):
        adapt(config_of(tmp_path, bn="split", finetune="frozen"))


def test_a_source_only_training_is_the_same_under_joint_and_split(tmp_path: Path) -> None:
    def trained(bn: str) -> dict[str, torch.Tensor]:
        job, _ = make_job(config_of(tmp_path, bn=bn), out=tmp_path / bn)
        Trainer(job).run()
        return job.net.state_dict()

    joint, split = trained("joint"), trained("split")
    assert all(torch.equal(split[name], value) for name, value in joint.items())


def test_holding_running_statistics_ends_with_the_block(tmp_path: Path) -> None:
    job, _ = make_job(config_of(tmp_path))
    net = job.net.train()
    name, layer = next(iter(net.batchnorm().items()))
    before = layer.running_mean.clone()
    with pytest.raises(ValueError, match="stop"), net.running_statistics_held():
        net(inputs(6, labels=True).inputs)
        raise ValueError("stop")
    assert torch.equal(layer.running_mean, before) and layer.momentum == 0.1
    net(inputs(6, labels=True).inputs)
    assert not torch.equal(layer.running_mean, before), name
