"""Roles features and norm: what the host asks of their owners, when, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daptkit.data import order
from daptkit.errors import PluginError
from daptkit.method import Method
from daptkit.model import norm_layers
from daptkit.train.aligning import checked_statistics, kept_alignments
from daptkit.train.loop import Trainer
from fakes import in_process, make_job, tiny_config, write_weights
from tiny_nets import tiny_net

EPOCH = 12
"""Steps: of 90 images, 8 at a time."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_MIN_STEPS", EPOCH)


class Shift(Method):
    """Owns both roles: adds to the target's features, and moves the first layer's mean."""

    def __init__(self, options: Any, task: Any) -> None:
        super().__init__(options, task)
        self.register_buffer("by", torch.zeros(()))
        self.calls: list[str] = []

    def fit_features(self, ctx: Any) -> None:
        self.calls.append(f"fit {ctx.epoch}")
        assert not torch.equal(ctx.predict("target").logits, ctx.predict("source_train").logits)
        self.by.fill_(float(ctx.predict("source_train").weights[0]))

    def align_features(self, features: Tensor, domain: str) -> Tensor:
        return features + self.by if domain == "target" else features

    def norm_statistics(self, ctx: Any) -> dict[str, tuple[Tensor, Tensor]]:
        self.calls.append(f"norm {ctx.epoch}")
        name, layer = next(iter(ctx.norm_layers().items()))
        return {name: (layer.mean + 1, layer.var)}


class Looks(Method):
    """Looks at the target after every epoch, under weights that it owns."""

    def __init__(self, options: Any, task: Any) -> None:
        super().__init__(options, task)
        self.register_buffer("weights", torch.tensor([2.0, 1.0, 1.0]))

    def class_weights(self) -> Tensor:
        return self.weights

    def on_epoch_end(self, ctx: Any) -> None:
        ctx.predict("target")
        self.weights[0] += 1


def trainer(folder: Path, *factories: type[Method], bn: bool = True, **values: Any) -> Trainer:
    folder.mkdir(parents=True, exist_ok=True)
    options = {**(write_weights(folder) if bn else {}), **values}
    roles = {"Shift": {"features", "norm"}, "Looks": {"class_weights"}}
    loaded = [
        in_process(f, f.__name__, roles=frozenset(roles[f.__mro__[-4].__name__]), trains="none")
        for f in factories
    ]
    return Trainer(make_job(tiny_config(folder, **options), *loaded)[0])


def test_features_are_fitted_to_each_state_and_statistics_where_the_target_is_seen(
    tmp_path: Path,
) -> None:
    alone = trainer(tmp_path / "alone", Shift, epochs=3)
    alone.run()
    # The scores of each epoch look at the target.
    each = [f"{what} {epoch}" for epoch in (1, 2, 3) for what in ("fit", "norm")]
    assert alone.job.methods["Shift"].calls == ["fit 0", *each]
    seen = trainer(tmp_path / "seen", Shift, Looks, epochs=2)
    seen.run()
    # Other weights come into force with each epoch, and what is fitted is fitted under them.
    assert seen.job.methods["Shift"].calls == [
        "fit 0",
        "fit 1",
        "norm 1",
        "fit 1",
        "fit 2",
        "norm 2",
    ]


def test_a_frozen_trunk_is_fitted_again_for_other_weights_alone(tmp_path: Path) -> None:
    alone = trainer(tmp_path / "alone", Shift, epochs=3, finetune="frozen")
    alone.run()
    assert alone.job.methods["Shift"].calls == ["fit 0"]
    seen = trainer(tmp_path / "seen", Shift, Looks, epochs=3, finetune="frozen")
    seen.run()
    assert seen.job.methods["Shift"].calls == ["fit 0", "fit 1", "fit 2"]
    # The first image's class, under the weights of the last epoch.
    label = seen.job.data.source.labels[seen.job.data.train_rows[0]]
    assert float(seen.job.methods["Shift"].by) == float(seen.class_weights[label])


def test_what_a_checkpoint_holds_is_not_fitted_again(tmp_path: Path) -> None:
    trainer(tmp_path, Shift, Looks, epochs=2).run()
    again = trainer(tmp_path, Shift, Looks, epochs=2)
    again.run()
    assert again.job.methods["Shift"].calls == ["norm 2"]
    assert float(again.job.methods["Shift"].by) > 0


@pytest.mark.parametrize("bn", ["joint", "split"])
def test_training_aligns_each_domain_by_itself(tmp_path: Path, bn: str) -> None:
    given: list[tuple[str, Tensor, Tensor]] = []
    outs: list[Tensor] = []

    class Batches(Shift):
        def align_batch(
            self, features: Tensor, domain: str, weights: Tensor, gather: Callable[[Tensor], Tensor]
        ) -> Tensor:
            given.append((domain, features.detach(), weights))
            return features * (3 if domain == "target" else 2)

        def losses(self, source: Any, target: Any, ctx: Any) -> Any:
            assert not given or torch.equal(gathered(ctx, source), source.features)
            further = ctx.forward(target.inputs)
            assert given[-1][0] == "target" and len(given[-1][2]) == len(target)
            outs.append(further.features.detach())
            return {"none": 0 * target.features.sum()}

    def gathered(ctx: Any, batch: Any) -> Tensor:
        return ctx.gather(batch.features)

    made = trainer(tmp_path, Batches, Looks, epochs=1, bn=bn == "split")
    made.module.split = bn == "split"
    bottleneck: list[Tensor] = []
    made.job.net.bottleneck.register_forward_hook(lambda m, x, y: bottleneck.append(x[0].detach()))
    made.run()
    domains = [domain for domain, _, _ in given[:3]]
    assert domains == ["source", "target", "target"]
    fed = torch.cat(bottleneck)
    first = given[0][1]
    weights = made.class_weights
    assert any(torch.equal(fed[i : i + 8], 2 * first) for i in range(0, len(fed), 2))
    assert any(torch.equal(fed[i : i + 8], 3 * given[1][1]) for i in range(0, len(fed), 2))
    assert set(given[0][2].tolist()) <= set(weights.tolist()) and given[0][2].unique().numel() > 1
    assert torch.equal(given[1][2], torch.ones(8))


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda x: None, "returned NoneType, not a tensor"),
        (lambda x: x[:, :1], "returned shape"),
        (lambda x: x / 0, "a value that is not finite"),
        (lambda x: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_features_that_cannot_be_used_are_refused(
    tmp_path: Path, returned: Callable[[Tensor], Any], words: str
) -> None:
    class Broken(Shift):
        def align_features(self, features: Tensor, domain: str) -> Any:
            return returned(features)

        def align_batch(self, features: Tensor, domain: str, weights: Any, gather: Any) -> Any:
            return features

    with pytest.raises(PluginError, match=words) as caught:
        trainer(tmp_path, Broken).run()
    assert "'Broken' (daptkit-fake 1.2)" in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda x: None, "returned NoneType, not a tensor"),
        (lambda x: x[:, :1], r"returned \(8, 1\) on cpu for \(8, \d+\) on cpu"),
        (lambda x: 1 // 0, r"failed in align_batch\(\): ZeroDivisionError"),
    ],
)
def test_batches_that_cannot_be_used_are_refused(
    tmp_path: Path, returned: Callable[[Tensor], Any], words: str
) -> None:
    class Broken(Shift):
        def align_batch(self, features: Tensor, domain: str, weights: Any, gather: Any) -> Any:
            return returned(features)

    with pytest.raises(PluginError, match=words) as caught:
        trainer(tmp_path, Broken).run()
    assert "'Broken' (daptkit-fake 1.2)" in str(caught.value)


PATH = "backbone.bn1"
HALF = (torch.zeros(32), torch.ones(32))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([1], "returned list instead of a dict by module path"),
        ({"backbone.nowhere": HALF}, "'backbone.nowhere', which is no layer"),
        ({PATH: HALF[0]}, "no pair of tensors"),
        ({PATH: (0.0, 1.0)}, "no pair of tensors"),
        ({PATH: (HALF[0][:3], HALF[1][:3])}, "other shapes than"),
        ({PATH: (HALF[0], -HALF[1])}, "a negative variance"),
        ({PATH: (HALF[0] / 0, HALF[1])}, "no finite number"),
    ],
)
def test_statistics_that_cannot_be_used_are_refused(found: Any, words: str) -> None:
    shapes = {PATH: torch.Size([32])}
    with pytest.raises(PluginError, match=words):
        checked_statistics(found, shapes, "method 'x' (y 1)")
    good = checked_statistics({PATH: (HALF[0].double(), HALF[1])}, shapes, "")
    assert good[PATH][0].dtype == torch.float32


def test_an_owner_of_statistics_that_raises_is_named(tmp_path: Path) -> None:
    broken = type("Broken", (Shift,), {"norm_statistics": lambda self, ctx: 1 // 0})
    with pytest.raises(PluginError, match=r"failed in norm_statistics\(\): ZeroDivisionError"):
        trainer(tmp_path / "norm", broken).run()
    broken = type("Broken", (Shift,), {"fit_features": lambda self, ctx: ctx.input_moments("x")})
    with pytest.raises(PluginError, match=r"failed in fit_features\(\): KeyError"):
        trainer(tmp_path / "features", broken).run()


def test_what_is_kept_is_what_predictions_need(tmp_path: Path) -> None:
    made = trainer(tmp_path, Shift, epochs=1)
    fit = made.run()
    loaded = in_process(Shift, "Shift", roles=frozenset({"features", "norm"}))
    (kept,) = kept_alignments([loaded], made.job, fit.statistics)
    assert kept.roles == {"features", "norm"} and kept.called
    assert list(kept.norm) == list(fit.statistics) and len(kept.norm) == 1
    with torch.no_grad():
        made.job.methods["Shift"].by.zero_()
    (same,) = kept_alignments([loaded], made.job, fit.statistics)
    assert same.roles == {"norm"} and not same.called
    assert kept_alignments([loaded], made.job, {}) == ()


def test_passes_see_each_domain_in_its_own_way(tmp_path: Path) -> None:
    made = trainer(tmp_path, Shift, epochs=1)
    result = made.run()
    net, data = made.job.net, made.job.data
    images = data.target.images.batch(data.target_rows)
    name, layer = next(iter(norm_layers(net).items()))
    by = float(made.job.methods["Shift"].by)
    with torch.no_grad():
        net.eval()
        source = net(data.source.images.batch(data.val_rows))[0]
        plain = net(images)[0]
        net.get_submodule(name).running_mean.add_(1)
        expected = net(images, align=lambda x: x + by)[0]
        net.get_submodule(name).running_mean.sub_(1)
    torch.testing.assert_close(result.passes.of("source_val")[0], source)
    assert not torch.allclose(plain, expected, atol=1e-3)
    torch.testing.assert_close(result.passes.of("target")[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm_layers(net)[name].mean, layer.mean, rtol=1e-4, atol=1e-6)


def test_frozen_statistics_are_not_set_apart(tmp_path: Path) -> None:
    assert trainer(tmp_path / "joint", Shift).module.apart
    assert not trainer(tmp_path / "lenet", Shift, bn=False).module.apart
    job = trainer(tmp_path / "frozen", Shift).job
    assert not Trainer(replace(job, config=replace(job.config, bn="frozen"))).module.apart


def test_the_trunk_tap_is_what_nothing_has_changed() -> None:
    net = tiny_net().eval()
    x = torch.rand(3, 3, 32, 32)
    plain, twice = net(x, ("trunk",)), net(x, ("trunk",), align=lambda features: 2 * features)
    assert torch.equal(plain[1]["trunk"], twice[1]["trunk"])
    assert not torch.equal(plain[1]["features"], twice[1]["features"])
